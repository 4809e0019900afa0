"""Work of operators, against formulas: floating-point operations, bytes, number."""

import pytest
import torch

from bakeoff.measure.work import Operator, Work
from bakeoff.model.forward import ForwardSettings, Hidden
from bakeoff.model.logprobs import head_terms


def work_of(function):
    """The operators of a call, each with its number."""
    with Work() as work, work.counted(1.0, "test"):
        function()
    return dict(work.phases["test"])


def total(operators, field):
    return sum(getattr(operator, field) * times for operator, times in operators.items())


def test_a_matrix_product_has_two_operations_for_each_factor_pair():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert work_of(lambda: a @ b) == {Operator(2 * 3 * 5 * 7, 4 * (3 * 5 + 5 * 7 + 3 * 7), False): 1.0}
    (batched,) = (
        work_of(lambda: torch.bmm(torch.ones(2, 3, 5), torch.ones(2, 5, 7))).keys()
        - work_of(lambda: (torch.ones(2, 3, 5), torch.ones(2, 5, 7))).keys()
    )
    assert batched.flops == 2 * 2 * 3 * 5 * 7


@pytest.mark.parametrize("product", ["addmm", "baddbmm"])
def test_a_product_in_place_has_the_operations_of_the_same_product_elsewhere(product):
    shapes = [(3, 7), (3, 5), (5, 7)]
    into, a, b = (torch.randn(shape if product == "addmm" else (2, *shape)) for shape in shapes)
    elsewhere = total(work_of(lambda: getattr(torch, product)(into, a, b)), "flops")
    assert total(work_of(lambda: getattr(into, f"{product}_")(a, b)), "flops") == elsewhere > 0


def test_what_only_writes_does_not_read():
    x, y = torch.ones(10), torch.ones(10)
    assert work_of(lambda: x.copy_(y)) == {Operator(0, 40 + 40, False): 1.0}
    assert work_of(lambda: x.zero_()) == {Operator(0, 40, False): 1.0}


def test_logits_in_chunks_have_a_product_more_than_whole_ones(tiny):
    """Forward; and backward once more that, the gradient of the states and that of the head."""
    states = torch.randn(6, tiny.network.config.hidden_size, requires_grad=True)
    hidden = Hidden(states, torch.arange(6), torch.arange(6), torch.ones(2, 3, dtype=torch.bool))
    vocabulary, width = tiny.embedding
    product = 2 * 6 * width * vocabulary

    def flops(limit):
        (logprobs,) = head_terms(tiny, hidden, ForwardSettings(logits_mb=limit), with_entropy=False)
        logprobs.sum().backward()

    assert total(work_of(lambda: flops(0.0)), "flops") == 3 * product
    assert total(work_of(lambda: flops(2 * 4 * vocabulary / 1e6)), "flops") == 4 * product


def test_an_operator_in_bfloat16_is_half():
    a = torch.ones(4, 4, dtype=torch.bfloat16)
    (operator,) = work_of(lambda: a @ a)
    assert operator == Operator(128, 3 * 32, True)


def test_a_backward_pass_counts_a_product_for_each_factor():
    a, b = torch.randn(3, 5, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    assert total(work_of(lambda: (a @ b).sum().backward()), "flops") == 3 * (2 * 3 * 5 * 7)


def test_attention_counts_two_products_forward_and_five_backward():
    q = torch.randn(2, 3, 4, 8, requires_grad=True)
    k, v = (torch.randn(2, 3, 6, 8, requires_grad=True) for _ in range(2))
    product = 2 * (2 * 3) * 4 * 6 * 8
    attention = torch.nn.functional.scaled_dot_product_attention
    assert total(work_of(lambda: attention(q, k, v)), "flops") == 2 * product
    assert total(work_of(lambda: attention(q, k, v).sum().backward()), "flops") == 7 * product


def test_views_and_allocations_cost_nothing():
    x = torch.ones(4, 6)
    assert work_of(lambda: (x.view(24), x.t(), x[1:], x.expand(3, 4, 6), x.detach(), torch.empty(9), x.device)) == {}


def test_writing_over_a_tensor_and_reading_rows_count_what_moves():
    x, table = torch.ones(10), torch.ones(1000, 4)
    assert work_of(lambda: x.add_(1)) == {Operator(0, 40 + 40, False): 1.0}
    ids = torch.tensor([1, 2, 3])
    assert work_of(lambda: torch.nn.functional.embedding(ids, table)) == {Operator(0, 48 + 24 + 48, False): 1.0}
    wide = torch.ones(1, 4).expand(100, 4)
    assert work_of(lambda: wide + wide) == {Operator(0, 16 + 16 + 1600, False): 1.0}


def test_an_operator_counts_as_many_times_as_its_context_says():
    x = torch.ones(2)
    with Work() as work:
        x + x  # outside of any phase
        with work.counted(3.0, "outer"):
            x + x
            with work.counted(0.5):
                x + x
            with work.counted(2.0, "inner"):
                x * x
    assert {phase: sum(operators.values()) for phase, operators in work.phases.items()} == {"outer": 3.5, "inner": 2.0}


def test_a_llama_has_the_operations_of_its_formula(tiny):
    """Projections, gated MLP, head and attention."""
    c, (s, t) = tiny.network.config, (3, 7)
    width, inner, layers = c.hidden_size, c.intermediate_size, c.num_hidden_layers
    weights = layers * (4 * width**2 + 3 * width * inner) + width * c.vocab_size
    attention = layers * 4 * s * t * t * width
    ids = torch.ones(s, t, dtype=torch.int64)
    with torch.no_grad():
        operators = work_of(lambda: tiny.network(input_ids=ids, use_cache=False))
    assert total(operators, "flops") == 2 * s * t * weights + attention
