from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from models.kernels.linear_cross_entropy import linear_cross_entropy

pytestmark = pytest.mark.numeric


def operands(rows, width, classes, *, dtype=torch.float32, seed=0, bias=False):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(classes, width, generator=generator, dtype=torch.float64) * width**-0.5 * 3
    labels = torch.randint(0, classes, (rows,), generator=generator)
    tensors = [states.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()]
    offsets = (
        torch.randn(classes, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() if bias else None
    )
    return *tensors, labels, offsets


def reference(states, weight, labels, bias=None, label_smoothing=0.0, reduction="sum"):
    logits = functional.linear(states, weight, bias)
    return functional.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction=reduction)


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, [tensor for tensor in tensors if tensor is not None])


@given(
    rows=st.integers(1, 23),
    width=st.integers(1, 9),
    classes=st.integers(1, 40),
    chunk_size=st.none() | st.integers(1, 30),
    label_smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    scale=st.sampled_from([1.0, 0.37]),
)
def test_equals_linear_and_cross_entropy(rows, width, classes, chunk_size, label_smoothing, bias, dtype, scale):
    states, weight, labels, offsets = operands(rows, width, classes, dtype=dtype, bias=bias)
    expected = reference(states, weight, labels, offsets, label_smoothing)
    loss = linear_cross_entropy(
        states, weight, labels, bias=offsets, label_smoothing=label_smoothing, chunk_size=chunk_size
    )
    assert loss.dtype == dtype
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 2e-5}
    torch.testing.assert_close(loss, expected, **tolerance)
    expected_gradients = gradients(expected * scale, states, weight, offsets)
    for ours, theirs in zip(gradients(loss * scale, states, weight, offsets), expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)
    with torch.no_grad():
        each = linear_cross_entropy(
            states, weight, labels, bias=offsets, label_smoothing=label_smoothing, chunk_size=chunk_size,
            reduction="none",
        )  # fmt: skip
        torch.testing.assert_close(
            each, reference(states, weight, labels, offsets, label_smoothing, "none"), **tolerance
        )


def test_many_pieces_of_one_chunk_equal_one(monkeypatch):
    states, weight, labels, _ = operands(19, 5, 33, dtype=torch.float64)
    expected = gradients(reference(states, weight, labels), states, weight)
    monkeypatch.setattr("models.kernels.linear_cross_entropy.SOFTMAX_BYTES", 4 * 33 * 8)
    for ours, theirs in zip(
        gradients(linear_cross_entropy(states, weight, labels), states, weight), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_gradients_are_the_slopes_of_the_loss(label_smoothing):
    """Central differences in every direction; torch.autograd.gradcheck differentiates one graph again and again."""
    tensors = operands(7, 4, 6, dtype=torch.float64, bias=True)
    states, weight, labels, bias = tensors

    def loss(states, weight, bias):
        return linear_cross_entropy(
            states, weight, labels, bias=bias, label_smoothing=label_smoothing, chunk_size=3
        ).sin()

    analytic = gradients(loss(states, weight, bias), states, weight, bias)
    for position, gradient in enumerate(analytic):
        for index in range(gradient.numel()):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [tensor.detach().clone() for tensor in (states, weight, bias)]
                moved[position].view(-1)[index] += step
                ends.append(loss(*moved))
            assert gradient.view(-1)[index].item() == pytest.approx(((ends[0] - ends[1]) / 2e-6).item(), abs=1e-7)


def test_sure_predictions_keep_their_digits():
    """A probability near one must not cost the loss its small digits, nor one near zero make it infinite."""
    weight, states = torch.tensor([[10.0], [0.0], [-200.0]]), torch.ones(2, 1)
    sure, wrong = linear_cross_entropy(states, weight, torch.tensor([0, 2]), reduction="none").tolist()
    assert sure == pytest.approx(4.54e-5, rel=5e-3)
    assert wrong == pytest.approx(210.0, abs=1e-4)


@pytest.mark.parametrize("mode", ["autocast", "parameters"])
def test_bfloat16_is_near_float32(mode):
    states, weight, labels, _ = operands(64, 32, 500)
    exact = reference(states, weight, labels)
    exact_gradients = gradients(exact, states, weight)
    if mode == "parameters":
        states, weight = (tensor.detach().bfloat16().requires_grad_() for tensor in (states, weight))
    with torch.autocast("cpu", torch.bfloat16) if mode == "autocast" else nullcontext():
        loss = linear_cross_entropy(states, weight, labels, chunk_size=10)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=2e-3)
    for ours, theirs, tensor in zip(gradients(loss, states, weight), exact_gradients, (states, weight), strict=True):
        assert ours.dtype == tensor.dtype
        assert float((ours - theirs).norm() / theirs.norm()) < 0.01


def test_bfloat16_adds_its_chunks_in_float32():
    """512 chunks of one row: summed in bfloat16, small contributions would vanish beside a large sum."""
    states, weight = torch.ones(512, 1), torch.zeros(2, 1, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        linear_cross_entropy(states, weight, torch.zeros(512, dtype=torch.int64), chunk_size=1).backward()
    assert weight.grad.tolist() == [[-256.0], [256.0]]


@pytest.mark.parametrize(("autocast", "product"), [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)])
def test_type_of_the_products_under_autocast(autocast, product):
    states, weight, labels, _ = operands(6, 4, 5)
    with Recorder() as recorder, torch.autocast("cpu", autocast):
        linear_cross_entropy(states, weight, labels)
    assert recorder.dtypes == {product}
    assert recorder.products == 3


def test_float16_autocast_keeps_small_probabilities():
    states, weight = torch.ones(1, 1), torch.cat([torch.full((1, 1), 17.0), torch.zeros(9, 1)]).requires_grad_()
    with torch.autocast("cpu", torch.float16):
        linear_cross_entropy(states, weight, torch.tensor([0])).backward()
    assert weight.grad[5].item() == pytest.approx(4.14e-8, rel=0.01)


def test_tied_embeddings_and_accumulation():
    """The weight is looked up and projected with, over two micro-batches: gradients add up as autograd's do."""
    results = []
    for loss in (linear_cross_entropy, reference):
        _, weight, labels, _ = operands(12, 4, 9)
        for part in (labels[:5], labels[5:]):
            loss(weight[part].tanh(), weight, part.flip(0)).backward()
        results.append(weight.grad)
    torch.testing.assert_close(*results)


def test_states_need_not_be_contiguous():
    states, weight, labels, _ = operands(10, 6, 11)
    strided = states.detach().t().contiguous().t().requires_grad_()
    assert not strided.is_contiguous()
    expected = gradients(reference(states, weight, labels), states, weight)
    for ours, theirs in zip(
        gradients(linear_cross_entropy(strided, weight, labels), strided, weight), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_no_rows_give_zero_and_zero_gradients():
    states, weight, labels, _ = operands(0, 3, 5)
    loss = linear_cross_entropy(states, weight, labels)
    loss.backward()
    assert loss.item() == 0.0
    assert states.grad.shape == (0, 3)
    assert weight.grad.tolist() == torch.zeros(5, 3).tolist()


class Recorder(TorchDispatchMode):
    """Matrix products, their types, and the number of elements of the largest tensor that any operation returned."""

    def __init__(self):
        super().__init__()
        self.largest = 0
        self.products = 0
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            self.products += 1
            self.dtypes.add(result.dtype)
        return result


def test_memory_does_not_grow_with_rows_times_classes():
    states, weight, labels, _ = operands(256, 8, 512)
    with Recorder() as recorder:
        linear_cross_entropy(states, weight, labels, chunk_size=16).backward()
    assert recorder.largest == 16 * 512
    with Recorder() as recorder:
        reference(states, weight, labels).backward()
    assert recorder.largest == 256 * 512


def test_chunks_fit_into_the_allowed_bytes(monkeypatch):
    states, weight, labels, _ = operands(100, 8, 512)
    monkeypatch.setattr("models.kernels.linear_cross_entropy.CHUNK_BYTES", 40 * 512 * 4)
    with Recorder() as recorder:
        linear_cross_entropy(states, weight, labels)
    assert recorder.largest == 34 * 512  # three chunks of like size


@pytest.mark.parametrize(
    ("wants_states", "wants_weight", "products"),
    [(True, True, 3), (True, False, 2), (False, True, 2), (False, False, 1)],
)
def test_only_wanted_gradients_are_computed(wants_states, wants_weight, products):
    states, weight, labels, _ = operands(6, 4, 5)
    states.requires_grad_(wants_states)
    weight.requires_grad_(wants_weight)
    with Recorder() as recorder:
        loss = linear_cross_entropy(states, weight, labels)
    assert recorder.products == products
    assert loss.requires_grad == (wants_states or wants_weight)
    states.requires_grad_()
    weight.requires_grad_()
    with Recorder() as recorder, torch.no_grad():
        linear_cross_entropy(states, weight, labels)
    assert recorder.products == 1


def test_gradients_are_handed_over_not_copied():
    states, weight, labels, _ = operands(6, 4, 5)
    seen = []
    weight.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter.grad.data_ptr()))
    with Recorder() as recorder:
        linear_cross_entropy(states, weight, labels).backward()
    assert len(seen) == 1  # what DistributedDataParallel listens to
    assert weight.grad.shape == (5, 4)
    assert recorder.largest == 6 * 5


def test_a_second_backward_pass_is_refused():
    states, weight, labels, _ = operands(6, 4, 5)
    loss = linear_cross_entropy(states, weight, labels)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        loss.backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, 5])}, "label 5 lies outside the 5 classes"),
        ({"labels": torch.tensor([-100, 1])}, "label -100 lies outside the 5 classes"),
        ({"labels": torch.tensor([1])}, r"labels \(1,\) do not fit"),
        ({"weight": torch.ones(5, 3)}, r"weight \(5, 3\) and labels \(2,\) do not fit"),
        ({"chunk_size": 0}, "chunk_size=0: at least 1"),
        ({"reduction": "none"}, "'none' has no gradient"),
        ({"reduction": "mean"}, "reduction='mean'"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    states, weight, labels, _ = operands(2, 4, 5)
    arguments = {"states": states, "weight": weight, "labels": labels, **change}
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**arguments)


def test_nan_states_give_a_nan_loss():
    states, weight, labels, _ = operands(3, 4, 5)
    with torch.no_grad():
        states[1, 2] = float("nan")
        each = linear_cross_entropy(states, weight, labels, reduction="none")
    assert each.isnan().tolist() == [False, True, False]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(dtype):
    states, weight, labels, _ = operands(300, 64, 1000)
    expected = reference(states, weight, labels)
    expected_gradients = gradients(expected, states, weight)
    there = [states.detach().cuda().requires_grad_(), weight.detach().cuda().requires_grad_()]
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        loss = linear_cross_entropy(*there, labels.cuda(), chunk_size=70)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5 if dtype == torch.float32 else 2e-3)
    for ours, theirs in zip(gradients(loss, *there), expected_gradients, strict=True):
        assert float((ours.cpu() - theirs).norm() / theirs.norm()) < (1e-4 if dtype == torch.float32 else 0.01)
