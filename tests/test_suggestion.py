"""`suggest`: its errors are those of the layers, its choice keeps the budget, and what it gives quantizes the model."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization import quantize_

import ao_arm
from ao_arm import suggestion
from ao_arm.sqnr import sqnr_db
from ao_arm.suggestion import Candidate

pytestmark = pytest.mark.x86

INT8, G32, G64 = ao_arm.acl_int8_dynamic(), ao_arm.acl_int4_grouped(32), ao_arm.acl_int4_grouped(64)


class Block(nn.Module):
    """A residual block whose second half counts for much more than its first."""

    def __init__(self) -> None:
        super().__init__()
        self.quiet, self.loud = nn.Linear(64, 64), nn.Linear(64, 64, bias=False)
        self.head = nn.Linear(64, 96)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(0.01 * torch.tanh(self.quiet(x)) + torch.tanh(self.loud(x)))
        return y


@pytest.fixture
def model() -> Block:
    torch.manual_seed(0)
    return Block().eval()


@pytest.fixture
def inputs() -> list[Tensor]:
    return [torch.randn(3, 20, 64), torch.randn(1, 7, 64)]


def measured(model: Block, suggested: ao_arm.Suggestion, inputs: list[Tensor]) -> float:
    made = Block().eval()
    made.load_state_dict(model.state_dict())
    quantize_(made, suggested.config, filter_fn=None)
    assert all(layer.kernel != "torch" for layer in ao_arm.explain(made))
    with torch.inference_mode():
        return sqnr_db(*(torch.cat([m(x).flatten() for x in inputs]) for m in (model, made)))


def test_sqnr_and_bytes_are_those_of_the_quantized_layer(
    model: Block, inputs: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suggestion, "_ROWS", 60)  # all there are
    suggested = ao_arm.suggest(model, inputs, bytes_per_weight=1.1, candidates={"int8": INT8, "g32": G32})
    x = torch.cat([batch.flatten(0, 1) for batch in inputs])
    layer = suggested.layers[1]
    assert (layer.name, layer.shape) == ("loud", (64, 64))
    for name, config in (("int8", INT8), ("g32", G32)):
        made = nn.Sequential(nn.Linear(64, 64, bias=False))
        made[0].weight = model.loud.weight
        quantize_(made, config)
        with torch.no_grad():
            assert layer.candidates[name].sqnr_db == pytest.approx(sqnr_db(model.loud(x), made(x)), abs=1e-4)
    int8, int4 = (layer.candidates[name].bytes for name in ("int8", "g32"))
    assert int4 < 0.7 * int8 and 64 * 64 <= int8 < 64 * 64 + 1024


def test_the_expected_sqnr_is_about_the_measured_one(model: Block, inputs: list[Tensor]) -> None:
    for bytes_per_weight in (0.8, 1.2):
        suggested = ao_arm.suggest(model, inputs, bytes_per_weight=bytes_per_weight, candidates={"8": INT8, "4": G32})
        assert suggested.sqnr_db == pytest.approx(measured(model, suggested, inputs), abs=2)


def test_more_budget_is_never_less_accurate(model: Block, inputs: list[Tensor]) -> None:
    candidates = {"int8": INT8, "g64": G64, "g32": G32}
    everything = ao_arm.suggest(model, inputs, bytes_per_weight=2.0, candidates=candidates)
    assert {layer.chosen for layer in everything.layers} == {"int8"}
    least = sum(min(c.bytes for c in layer.candidates.values()) for layer in everything.layers)
    found = []
    for budget in range(least, everything.bytes + 1, (everything.bytes - least) // 6):
        suggested = ao_arm.suggest(model, inputs, budget=budget, candidates=candidates)
        assert suggested.bytes <= budget == suggested.budget
        found.append((suggested.sqnr_db, measured(model, suggested, inputs)))
    assert found == sorted(found)
    assert [real for _, real in found] == sorted(real for _, real in found)
    assert found[-1][1] > found[0][1] + 10


def test_bytes_go_where_errors_count(model: Block, inputs: list[Tensor]) -> None:
    """Two layers of one shape, one of which reaches the output a hundredfold weaker."""
    suggested = ao_arm.suggest(
        model, inputs, bytes_per_weight=0.95, candidates={"8": INT8, "4": G32}, filter_fn=lambda _, name: name != "head"
    )
    assert {layer.name: layer.chosen for layer in suggested.layers} == {"quiet": "4", "loud": "8"}


def test_the_model_is_left_as_it_was(model: Block, inputs: list[Tensor]) -> None:
    model.quiet.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        ao_arm.suggest(model, inputs, bytes_per_weight=1.2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["quiet.weight"]
    assert all(p.grad is None for p in model.parameters())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())


def test_searched_candidates_are_searched_for_these_inputs(model: Block, inputs: list[Tensor]) -> None:
    """By default, and then when the model is quantized as well."""
    inputs = [x * torch.logspace(-2, 1, 64) for x in inputs]
    suggested = ao_arm.suggest(model, inputs, bytes_per_weight=0.7)
    searched = [layer.candidates["int4 g32"].sqnr_db for layer in suggested.layers]
    plain = ao_arm.suggest(model, inputs, bytes_per_weight=0.7, candidates={"g32": G32})
    assert searched[0] > plain.layers[0].candidates["g32"].sqnr_db + 0.5
    quantize_(model, suggested.config, filter_fn=None)
    assert {layer.scheme.split()[0] for layer in ao_arm.explain(model)} == {"int4"}


class Keywords(nn.Module):
    """Takes keyword arguments and gives a mapping, as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 32), nn.Linear(32, 10)

    def forward(self, *, input_ids: Tensor) -> dict[str, Tensor]:
        return {"input_ids": input_ids, "logits": self.head(self.embed(input_ids))}


def test_inputs_by_keyword_and_layers_that_a_candidate_cannot_quantize() -> None:
    suggested = ao_arm.suggest(Keywords().eval(), [{"input_ids": torch.arange(10)[None]}], budget=9999)
    (layer,) = suggested.layers
    assert set(layer.candidates) == {"int8", "int4 g32"}, "k = 32 has no groups of 128"
    assert "head   10 x 32" in str(suggested) and layer.chosen == "int8"


def test_the_table_and_the_picture(model: Block, inputs: list[Tensor]) -> None:
    suggested = ao_arm.suggest(model, inputs, bytes_per_weight=0.95, candidates={"int8": INT8, "g32": G32})
    header, _, *rows, last = str(suggested).splitlines()
    assert header.split() == ["layer", "n", "x", "k", "int8,", "dB", "g32,", "dB", "chosen", "KB"]
    assert [row.split()[0] for row in rows] == ["quiet", "loud", "head"]
    assert last.endswith(f"expected SQNR of the output {suggested.sqnr_db:.1f} dB")
    pytest.importorskip("matplotlib")
    (axes,) = suggested.plot().axes
    chosen = [layer.chosen for layer in suggested.layers]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [f"{name}: {chosen.count(name)} of 3" for name in ("int8", "g32")]


def test_the_choice_is_the_best_there_is() -> None:
    """Beside all choices of five layers."""
    random = torch.Generator().manual_seed(1)
    layers = [
        {
            str(size): Candidate(0.0, float(torch.rand((), generator=random)) / size, size)
            for size in torch.randint(100, 400, (3,), generator=random).tolist()
        }
        for _ in range(5)
    ]
    least = sum(min(c.bytes for c in layer.values()) for layer in layers)
    for budget in (least, least + 100, least + 333, 2000):
        chosen = suggestion._choose(layers, budget)
        picked = [layer[name] for layer, name in zip(layers, chosen, strict=True)]
        possible = [
            sum(c.noise for c in choice)
            for choice in product(*(layer.values() for layer in layers))
            if sum(c.bytes for c in choice) <= budget
        ]
        assert sum(c.bytes for c in picked) <= budget
        assert math.isclose(sum(c.noise for c in picked), min(possible))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"^give either budget, in bytes, or bytes_per_weight; not budget=None and bytes_per_weight=None"),
        ({"budget": 9, "bytes_per_weight": 1.0}, r"^give either budget, .* not budget=9 and bytes_per_weight=1.0"),
        ({"budget": 9}, r"^the budget of 9 bytes is too small: the smallest candidates of all 3 layers take \d+ bytes"),
        (
            {"budget": 99999, "candidates": {"g96": ao_arm.acl_int4_grouped(96)}},
            "^no candidate can quantize quiet; g96: ",
        ),
        ({"budget": 99999, "filter_fn": lambda *_: False}, "^Block has no nn.Linear with float weights inside it"),
    ],
)
def test_wrong_arguments_are_refused(
    options: dict[str, object], message: str, model: Block, inputs: list[Tensor]
) -> None:
    with pytest.raises(ValueError, match=message):
        ao_arm.suggest(model, inputs, **options)


def test_inputs_that_tell_nothing_are_refused(model: Block) -> None:
    with pytest.raises(ValueError, match=r"^there are no inputs"):
        ao_arm.suggest(model, [], budget=99999)
    model.other = nn.Linear(64, 64)
    with pytest.raises(ValueError, match=r"^no input reaches other: give inputs that do, or leave these layers out"):
        ao_arm.suggest(model, [torch.randn(2, 64)], budget=99999)
    with pytest.raises(ValueError, match=r"^the model's output must be a float tensor"):
        ao_arm.suggest(nn.Sequential(nn.Linear(64, 64), Argmax()), [torch.randn(2, 64)], budget=99999)


class Argmax(nn.Module):
    """Whose output has no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(dim=-1)
