"""act_and_mul of the backend cutlass on a Hopper GPU: against fp64, the recipe of FP8, streams and graphs."""

import pytest
import torch
from flexact import ActivationRegistry, _core, act_and_mul, formats
from flexact.dense import act_and_quantise
from moe_reference import split

SWISH = ActivationRegistry.get_activation("swish", {"beta": 1.5})
PAIRINGS = ("concat", "up_first", "interleaved", "none")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# A token, wide rows; rows that are no whole pieces; many short rows; several pieces a thread.
SIZES = ((1, 14336), (3, 40), (5, 1001), (700, 2880), (4096, 1536), (2, 20000))

refused = _core.refuse_dense("cutlass", SWISH.function.gated(), pairing="concat", dtype="bfloat16")
pytestmark = pytest.mark.skipif(refused is not None, reason=str(refused))


def rows_of(rows, width, pairing, dtype, gap=0, seed=0):
    generator = torch.Generator().manual_seed(seed + rows + width)
    columns = width * (1 if pairing == "none" else 2)
    return torch.randn(rows, columns + gap, generator=generator).to(dtype).cuda()[:, :columns]


def exact(x, pairing, activation=SWISH):
    parts = (x,) if pairing == "none" else split(x, pairing)
    return activation(*(part.double() for part in parts))


def fitting(activation, pairing):
    return activation if pairing == "none" else activation.gated()


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_fp64_rounded_once(pairing, dtype):
    relative = {torch.bfloat16: 2**-8, torch.float16: 2**-10, torch.float32: 4e-6}[dtype]
    for rows, width in SIZES:
        # Rows further apart than they are long, aligned to pieces and not.
        for gap in (0, 8, 3):
            x = rows_of(rows, width, pairing, dtype, gap)
            want = exact(x, pairing, fitting(SWISH, pairing))
            got = act_and_mul(x, SWISH, pairing=pairing, backend="cutlass")
            error = ((got.double() - want).abs() - relative * want.abs()).max().item()
            assert error <= (1e-7 if dtype != torch.float16 else 6e-8), (rows, width, gap)
            again = act_and_mul(x, SWISH, pairing=pairing, backend="cutlass")
            assert torch.equal(got, again)


@pytest.mark.parametrize("name", ["gelu", "swiglu_oai", "situ", "relu2", "xielu"])
def test_other_functions(name):
    given = {"situ": {"beta": 1.2, "linear_beta": 1.5}, "xielu": {"alpha_p": 0.2, "alpha_n": -1.0}}
    activation = ActivationRegistry.get_activation(name, given.get(name, {}))
    x = rows_of(257, 1408, "concat", torch.bfloat16)
    want = exact(x, "concat", activation.gated())
    got = act_and_mul(x, activation, backend="cutlass")
    torch.testing.assert_close(got.double(), want, rtol=2**-7, atol=2**-10)


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", ["fp8_block", "fp8_channel"])
def test_codes_are_the_activation_quantised_from_fp32(format, pairing, dtype):
    for rows, width in SIZES:
        x = rows_of(rows, width, pairing, dtype)
        codes, scale = act_and_quantise(x, SWISH, format=format, pairing=pairing, backend="cutlass")
        want = exact(x, pairing, fitting(SWISH, pairing)).float()
        wanted, wanted_scale = formats.quantise_activations(want, format)
        torch.testing.assert_close(scale, wanted_scale, rtol=1e-5, atol=0)
        # Where fp32 and float64 disagree in the last bit a value may fall to the next code.
        differ = (codes.view(torch.uint8) != wanted.view(torch.uint8)).float().mean().item()
        assert differ < 0.01, (rows, width)
        assert codes.shape == want.shape


def test_many_short_calls_of_one_function_link_it_once(capfd, monkeypatch):
    monkeypatch.setenv("FLEXACT_VERBOSE", "1")
    activation = ActivationRegistry.get_activation("swish", {"beta": 0.7})
    for rows in range(1, 9):
        act_and_mul(rows_of(rows, 64, "concat", torch.bfloat16), activation, backend="cutlass")
    assert capfd.readouterr().err.count("linked in") <= 1


def test_replay_of_a_graph_follows_new_rows():
    x, other = (rows_of(300, 1024, "concat", torch.bfloat16, seed=seed) for seed in (1, 2))
    act_and_mul(x, SWISH, backend="cutlass")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = act_and_mul(x, SWISH, backend="cutlass")
    x.copy_(other)
    graph.replay()
    assert torch.equal(result, act_and_mul(other, SWISH, backend="cutlass"))


def test_it_runs_on_the_current_stream_after_what_was_launched_there():
    x = rows_of(4096, 1024, "concat", torch.bfloat16)
    want = act_and_mul(torch.ones_like(x), SWISH, backend="cutlass")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        x.fill_(1)
        late = act_and_mul(x, SWISH, backend="cutlass")
        x.fill_(2)
    stream.synchronize()
    assert torch.equal(late, want)
