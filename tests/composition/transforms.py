"""The `torch.func` transforms, each as ``transform(loss, params, x, labels)``, where loss takes the other three."""

from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

PER_EXAMPLE = (None, 0, 0)


def double_grad(loss, params, x, labels):
    def sharpness(params):
        return sum(gradient.square().sum() for gradient in grad(loss)(params, x, labels).values())

    return grad(sharpness)(params)


def losses(loss, params, x, labels):
    """The loss of each example."""
    return vmap(loss, PER_EXAMPLE)(params, x, labels)


def directions(params):
    return {name: parameter.cos() for name, parameter in params.items()}


def pull_back(loss, params, x, labels):
    values, pull = vjp(lambda p: losses(loss, p, x, labels), params)
    return pull(values.cos())


def encoder_only(loss, params, x, labels):
    """The losses of the examples as a function of the encoder's bias alone, so that Jacobians stay small."""
    (name,) = (name for name in params if name.endswith("encoder.bias"))
    return lambda bias: losses(loss, {**params, name: bias}, x, labels), params[name]


def of_encoder(transform):
    def apply(loss, params, x, labels):
        function, bias = encoder_only(loss, params, x, labels)
        return transform(function)(bias)

    return apply


TRANSFORMS = {
    "grad": lambda loss, params, x, labels: grad(loss)(params, x, labels),
    "vjp": pull_back,
    "jvp": lambda loss, params, x, labels: jvp(lambda p: loss(p, x, labels), (params,), (directions(params),))[1],
    "jacrev": of_encoder(jacrev),
    "jacfwd": of_encoder(jacfwd),
    "hessian": of_encoder(hessian),
    "grad(vmap)": lambda loss, params, x, labels: grad(lambda p: losses(loss, p, x, labels).sum())(params),
    "vmap(grad)": lambda loss, params, x, labels: vmap(grad(loss), PER_EXAMPLE)(params, x, labels),
    "grad(grad)": double_grad,
}
