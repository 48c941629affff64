"""What is concluded from a Triton's model configuration, and that one call can be the only one on its endpoint."""

import asyncio

import pytest
from tritonclient.grpc import model_config_pb2

from teacherfarm.export.triton_repository import config_pbtxt
from teacherfarm.protos.faults import BadTeacher
from teacherfarm.teacher_server.backends.triton_backend import Traffic, check_config, num_instances, provider_class
from tests.on_loop import on_loop, settled
from tests.unit.teacher_server.scripted import CARD

ModelConfig = model_config_pb2.ModelConfig


def configured(text: str) -> ModelConfig:
    from google.protobuf import text_format

    return text_format.Parse(text, ModelConfig())


def exported_config(**changes: str) -> ModelConfig:
    config = configured(config_pbtxt(CARD, "python", 16))
    for name, value in changes.items():
        config.parameters[name].string_value = value
    return config


def test_what_export_writes_is_accepted():
    check_config(exported_config(), CARD, None)
    check_config(exported_config(), CARD, 16)


@pytest.mark.parametrize("what", ["teacher_digest", "artifact_digest", "precision"])
def test_another_model_is_refused_with_what_was_found_and_expected(what):
    with pytest.raises(BadTeacher, match=f"another 'scripted': {what} ab12, expected {getattr(CARD, what)}"):
        check_config(exported_config(**{what: "ab12"}), CARD, None)
    with pytest.raises(BadTeacher, match="teacher_digest missing, expected"):
        check_config(ModelConfig(name="scripted"), CARD, None)


def test_an_endpoint_that_takes_smaller_batches_than_the_lane_is_refused():
    with pytest.raises(BadTeacher, match="at most 16 crops of 'scripted' at once, --max-batch is 17"):
        check_config(exported_config(), CARD, 17)


@pytest.mark.parametrize(
    ("groups", "instances"),
    [
        ("instance_group { count: 1 kind: KIND_CPU }", 1),
        ("instance_group { count: 3 kind: KIND_CPU }", 3),
        ("instance_group { count: 2 kind: KIND_GPU gpus: [0, 1] }", 4),
        ("instance_group { count: 1 kind: KIND_GPU gpus: 0 } instance_group { count: 2 kind: KIND_GPU gpus: 1 }", 3),
    ],
)
def test_instances_are_counted_over_groups_and_gpus(groups, instances):
    assert num_instances(configured(groups)) == instances


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ('backend: "onnxruntime" instance_group { count: 1 kind: KIND_CPU }', "cpu"),
        ('backend: "python" instance_group { count: 1 kind: KIND_GPU gpus: 0 }', "cuda"),
        ('backend: "tensorrt" instance_group { count: 1 kind: KIND_GPU gpus: 0 }', "tensorrt"),
        ('platform: "tensorrt_plan" instance_group { count: 1 kind: KIND_GPU gpus: 0 }', "tensorrt"),
        ('optimization { execution_accelerators { gpu_execution_accelerator { name: "tensorrt" } } }', "tensorrt"),
    ],
)
def test_what_computes_is_named_as_onnx_runtime_names_it(config, name):
    assert provider_class(configured(config)) == name


@on_loop
async def test_alone_means_after_all_others_and_before_the_next():
    traffic, order = Traffic(), []
    go = {name: asyncio.Event() for name in "abcd"}

    async def call(name):
        await traffic.enter()
        order.append(name)
        await go[name].wait()
        traffic.leave()

    async def alone(name):
        async with traffic.alone():
            order.append(name)
            await go[name].wait()

    tasks = [asyncio.create_task(call("a"))]
    await settled()
    tasks += [asyncio.create_task(alone("b")), asyncio.create_task(alone("c")), asyncio.create_task(call("d"))]
    await settled()
    assert order == ["a"]
    go["a"].set()
    await settled()
    assert order == ["a", "b"]
    tasks[1].cancel()
    await settled()
    assert len(order) == 3
    go["c"].set()
    go["d"].set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(order) == ["a", "b", "c", "d"]
    assert traffic.running == 0
