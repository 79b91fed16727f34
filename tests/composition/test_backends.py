"""What the tests of several backends stand on: each backend runs, in its turn, what Dynamo has traced once."""

import torch
from torch._dynamo.backends.registry import register_backend

from composition.backends import EachBackend


def test_each_backend_runs_what_was_traced_once() -> None:
    @register_backend(name="gradroute_tests_rewrites")
    def rewrites(graph, inputs):
        """Makes sine of cosine, in the graph that it is given."""
        for node in graph.graph.nodes:
            if node.target is torch.cos:
                node.target = torch.sin
        graph.recompile()
        return graph.forward

    torch.compiler.reset()
    backends = EachBackend("gradroute_tests_rewrites", "eager")
    compiled = torch.compile(torch.cos, backend=backends, fullgraph=True)
    x = torch.linspace(0, 1, 5)
    found = {name: [compiled(x), compiled(x + 1)] for name in backends.each()}
    assert list(found) == ["gradroute_tests_rewrites", "eager"]
    torch.testing.assert_close(found["gradroute_tests_rewrites"], [x.sin(), (x + 1).sin()])
    torch.testing.assert_close(found["eager"], [x.cos(), (x + 1).cos()])
    assert backends.traces == 1
