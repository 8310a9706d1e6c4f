"""torch.distributed with packed weights: what works, and what is refused by name. One process stands for several."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed
from models import FIRST, is_packed, quantized_model
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torchao.core.config import AOBaseConfig

pytestmark = pytest.mark.one_cpu

EACH_FIRST = pytest.mark.parametrize("first", FIRST.values(), ids=FIRST)


@pytest.fixture(autouse=True, scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("store") / "file"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def with_a_head(first: AOBaseConfig) -> torch.nn.Sequential:
    """Packed layers, frozen, and a linear one that learns."""
    torch.manual_seed(0)
    return torch.nn.Sequential(quantized_model(first).requires_grad_(False), torch.nn.Linear(64, 5))


@EACH_FIRST
def test_distributed_checkpoints(first: AOBaseConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, other = quantized_model(first), quantized_model(first)
    x = torch.randn(5, 96)
    assert not torch.equal(model(x), other(x))
    torch.distributed.checkpoint.save({"model": get_model_state_dict(model)}, checkpoint_id=tmp_path)
    state = {"model": get_model_state_dict(other)}
    torch.distributed.checkpoint.load(state, checkpoint_id=tmp_path)
    set_model_state_dict(other, state["model"])
    assert torch.equal(model(x), other(x))


@EACH_FIRST
def test_data_parallel_training_of_a_head(first: AOBaseConfig) -> None:
    model, x = with_a_head(first), torch.randn(4, 96)
    with pytest.raises(
        NotImplementedError, match=r"cannot take the packed weight.*DataParallel\(\.\.\., init_sync=False"
    ):
        DistributedDataParallel(model)
    parallel = DistributedDataParallel(model, init_sync=False)
    before = parallel(x)
    before.square().mean().backward()
    learned = [parameter for parameter in parallel.parameters() if parameter.requires_grad]
    assert len(learned) == 2
    torch.optim.SGD(learned, 0.1).step()
    assert parallel(x).square().mean() < before.square().mean()


@EACH_FIRST
def test_fully_sharded_around_packed_weights(first: AOBaseConfig) -> None:
    x, mesh = torch.randn(4, 96), init_device_mesh("cpu", (1,))
    with pytest.raises(NotImplementedError, match=r"cannot take the packed weight.*fully_shard.*ignored_params"):
        fully_shard(with_a_head(first), mesh=mesh)
    model = with_a_head(first)
    expected = model(x)
    packed = {parameter for parameter in model.parameters() if is_packed(parameter)}
    assert len(packed) == 2
    fully_shard(model, mesh=mesh, ignored_params=packed)
    assert torch.equal(model(x), expected)
