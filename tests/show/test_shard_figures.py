"""The shard map of lesson 07 shows the cuts that `labkit.parallel.zero_units` makes, and its figures tell the bytes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from inside import assert_titles_and_names_inside
from torch import nn

from labkit.errors import LabError
from labkit.parallel import zero_units
from labkit.parallel.zero_formula import bytes_per_rank
from labkit.show import shards

NUMELS = {"q": 300, "norm": 7, "up": 1000}


def units(world_size, monkeypatch):
    """The real unit of every rank, of parameters with these sizes."""
    monkeypatch.setattr(zero_units.dist, "broadcast", lambda *_: None)
    found = []
    for rank in range(world_size):
        named = [(name, nn.Parameter(torch.arange(float(n)))) for name, n in NUMELS.items()]
        wire = SimpleNamespace(rank=rank, world_size=world_size, device=torch.device("cpu"))
        found.append(zero_units.Unit("layer", named, wire, torch.float32, sharded=False))
    return found


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
def test_parts_and_pieces_are_those_of_the_real_unit(world_size, monkeypatch):
    shards_ = shards.ShardMap.of(NUMELS, world_size)
    for rank, unit in enumerate(units(world_size, monkeypatch)):
        assert shards_.places() == [(slot.name, slot.begin, slot.end) for slot in unit.slots]
        assert (shards_.part, shards_.padded) == (unit.size, unit.padded)
        values = unit.weights[unit.own]
        for piece in shards_.pieces(rank):
            here = values[piece.at - unit.own.start :][: piece.end - piece.begin]
            assert here.tolist() == list(map(float, range(piece.begin, piece.end)))
    owned = [piece for rank in range(world_size) for piece in shards_.pieces(rank)]
    assert sum(piece.end - piece.begin for piece in owned) == sum(NUMELS.values())


def test_bytes_a_parameter_are_the_formula():
    for world_size in (1, 3, 8):
        for stage in range(4):
            each = shards.ShardMap.of(NUMELS, world_size).each(stage)
            assert each == pytest.approx(bytes_per_rank(stage, 1, world_size))
    with pytest.raises(LabError):
        shards.ShardMap.of(NUMELS, 2).each(4)
    with pytest.raises(LabError):
        shards.ShardMap.of(NUMELS, 9)


def coloured(ax) -> float:
    """Area of what is held or padding; outlines have no colour."""
    areas = 0.0
    for bars in ax.collections:
        if bars.get_facecolor().size and bars.get_facecolor()[0][3] > 0:
            extents = [path.get_extents() for path in bars.get_paths()]
            areas += sum(box.width for box in extents)
    return areas


def test_coloured_widths_are_bytes():
    numels = {"a": 64, "b": 128}  # parts of 64: no padding
    for stage, each in ((0, 16), (1, 4 + 12 / 3), (2, 2 + 14 / 3), (3, 16 / 3)):
        fig = shards.shard_figure(numels, 3, stage)
        assert coloured(fig.axes[0]) == pytest.approx(3 * each)
        assert_titles_and_names_inside(fig)
        assert f"holds {each:.3g} bytes" in shards.shard_words(numels, 3, stage)


def test_the_four_stages_stand_below_each_other():
    fig = shards.stages_figure(NUMELS, 4)
    assert [ax.get_title(loc="left").split(" on ")[0] for ax in fig.axes] == [
        "No sharding",
        "Stage 1",
        "Stage 2",
        "Stage 3",
    ]
    assert_titles_and_names_inside(fig)
    assert "Stage 3 on 4 ranks: a rank holds 4 bytes a parameter" in shards.stages_words(NUMELS, 4)


def test_the_explorer_follows_its_sliders_and_tells_who_owns_what():
    widget = shards.ShardExplorer(NUMELS)
    widget.sliders["world_size"].value, widget.sliders["stage"].value = 2, 3
    assert "Stage 3 on 2 ranks: a rank holds 8 bytes" in widget.words
    assert "q, norm, up[0:" in widget.picture.value
    rows = shards.owned_rows({"tiny": 10}, 3)
    assert [row["owns"] for row in rows] == ["tiny", "nothing but padding", "nothing but padding"]
    assert [row["padding"] for row in rows] == [54, 64, 64]
