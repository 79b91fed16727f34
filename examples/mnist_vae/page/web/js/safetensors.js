// Weights as safetensors: eight bytes for the length of a header in JSON, the header, and the tensors one after another.

const SIZES = { F32: 4, F16: 2, I64: 8 };

/**
 * @param {ArrayBuffer} bytes
 * @returns {Record<string, {shape: number[], values: Float32Array}>} the floating tensors by name
 */
export function readSafetensors(bytes) {
  const length = Number(new DataView(bytes).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 8, length)));
  const found = {};
  for (const [name, { dtype, shape, data_offsets: [start, end] }] of Object.entries(header)) {
    if (!(dtype in SIZES)) {
      throw new Error(`${name} is ${dtype}`);
    }
    if (dtype === "I64") {
      continue; // a count of training steps
    }
    const data = bytes.slice(8 + length + start, 8 + length + end);
    found[name] = { shape, values: dtype === "F16" ? fromHalf(new Uint16Array(data)) : new Float32Array(data) };
  }
  return found;
}

/** @param {Uint16Array} halves one sign bit, five of the exponent, ten of the fraction */
function fromHalf(halves) {
  return Float32Array.from(halves, (half) => {
    const exponent = (half >> 10) & 31;
    const fraction = half & 1023;
    const value = exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15);
    return half & 0x8000 ? -value : value; // neither inf nor NaN is ever exported
  });
}
