// What each number says of each digit: the mean activations, as a table that is coloured by its values.

/**
 * @param {HTMLElement} place
 * @param {number[][]} means one row a digit, one column a number
 * @param {boolean} routed
 */
export function showMatrix(place, means, routed) {
  const largest = Math.max(...means.flat());
  const table = document.createElement("table");
  const caption = table.createCaption();
  const heading = Object.assign(document.createElement("b"), { textContent: "What each number says of each digit. " });
  caption.append(heading, "Rows: training images of a digit. Columns: how strongly each of the ten numbers speaks, on average" +
    (routed ? "." : ". Nothing keeps them apart here."));
  const head = table.createTHead().insertRow();
  head.append(document.createElement("td"), ...means[0].map((_, number) => header(String(number), "col")));
  const body = table.createTBody();
  means.forEach((row, digit) => {
    const line = body.insertRow();
    line.append(header(String(digit), "row"), ...row.map((mean) => cell(mean, largest)));
  });
  place.replaceChildren(table);
}

function header(text, scope) {
  return Object.assign(document.createElement("th"), { textContent: text, scope });
}

function cell(mean, largest) {
  const data = document.createElement("td");
  data.textContent = mean.toFixed(1).replace("-0.0", "0.0").replace("-", "\u2212");
  const part = Math.max(0, mean / largest);
  data.style.setProperty("--part", `${Math.round(100 * part)}%`);
  data.classList.toggle("loud", part > 0.5);
  return data;
}
