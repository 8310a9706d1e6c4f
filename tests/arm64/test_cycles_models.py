"""Modelled cycles of whole encoders: what the guest labels, the table and the picture."""

from pathlib import Path

import cycles_model_guest
import pytest
import torch
from cycles import main
from cycles_figures import Row
from cycles_guest import sqnr
from cycles_models import MODELS, PARTS, draw_models, model_rows, model_table, speedups

CYCLES = {
    ("fp32", "whole"): 900, ("fp32", "linear"): 800, ("torch", "whole"): 400, ("torch", "linear"): 300,
    ("ours", "whole"): 200, ("ours", "linear"): 100, ("fp32", "attention"): 40, ("fp32", "normalisation"): 20,
}  # fmt: skip


def rows(model: str = "distilbert") -> list[Row]:
    return [
        Row(f"{whose} {part} {length}", 16, 0, 0, busiest=1000 * cycles * factor, working=16, regions=1)
        for length, factor in ((8, 1), (16, 3))
        for (whose, part), cycles in CYCLES.items()
    ]


def test_a_layer_s_figures_are_multiplied() -> None:
    found = model_rows("distilbert", rows())
    assert found[0] == ("fp32", "whole", 8, 6 * 900_000)
    assert speedups(found, "linear") == {8: 3.0, 16: 3.0}
    assert speedups(found, "whole") == {8: 2.0, 16: 2.0}


def test_table_of_an_encoder() -> None:
    lines = model_table("distilbert", model_rows("distilbert", rows()), "neoverse-v1", 16).splitlines()
    assert lines[0].split()[-4:] == ["tokens", "8", "16", "mean"]
    cells = {line.rsplit("  ", 3)[0].split("  ")[0]: line.split()[-3:] for line in lines[1:]}
    assert cells["encoder: times as fast"] == ["2.00", "2.00", "2.00"]
    assert cells["linear layers: times as fast"] == ["3.00", "3.00", "3.00"]
    assert cells["of ours: linear layers"] == ["50%", "50%", "50%"]
    assert cells["of ours: attention"] == ["20%", "20%", "20%"]
    assert cells["of ours: Python and what is left"] == ["20%", "20%", "20%"]
    assert "5400" in lines[1]


def test_picture_of_encoders(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "models.svg"
    draw_models({name: model_rows(name, rows()) for name in MODELS}, "neoverse-v1", 16, file)
    drawn = file.read_text()
    for name in MODELS:
        assert f"<!-- {name}, linear layers (mean 3.00) -->" in drawn
    assert "nothing measured" in drawn


def test_options_that_do_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    for options, complaint in (
        (["--json", "file"], "--model goes with"),
        (["--threads", "1,16"], "--model takes one number of threads"),
    ):
        with pytest.raises(SystemExit):
            main(["--model", "bert-base", *options])
        assert complaint in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--model", "bert"])
    assert "'bert' is none of" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_the_guest_makes_each_model_s_layer_and_its_parts(model: str) -> None:
    pytest.importorskip("transformers")
    with torch.inference_mode():
        layer, config = cycles_model_guest.encoder_layer(model)
        ours = cycles_model_guest.quantized_by_ours(layer)
        states = torch.randn(1, 4, config.hidden_size)
        inputs = cycles_model_guest.linear_inputs(layer, states)
        assert len(inputs) == 6
        called = {}
        for name, call in cycles_model_guest.parts({"fp32": layer, "ours": ours}, states, config.num_attention_heads):
            called[name] = call()
        assert {name.split()[1] for name in called} == {"whole", *PARTS}
        expected = cycles_model_guest.hidden_states(called["fp32 whole"])
        actual = cycles_model_guest.hidden_states(called["ours whole"])
        assert sqnr(expected, actual) > cycles_model_guest.LEAST_SQNR
