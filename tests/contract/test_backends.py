"""One suite over every Backend: what a lane relies on. A fake that fails it is no fake."""

import asyncio

import numpy as np
import pytest

from teacherfarm.protos.faults import DamagedArtifact
from teacherfarm.teacher_server.backends import onnx_backend
from teacherfarm.teacher_server.backends.backend import BackendUnreachable, FailedInCompany
from teacherfarm.teacher_server.backends.onnx_backend import OnnxBackend, size_ladder
from teacherfarm.teacher_server.backends.scripted_backend import ScriptedBackend, marked_outputs
from teacherfarm.teacher_server.backends.triton_backend import TritonBackend
from teacherfarm.teacher_server.farm.golden import check_golden_answers
from teacherfarm.teacher_server.farm.model_directory import read_model_directory
from tests.on_loop import on_loop

BACKENDS = ["onnx", "triton", "scripted", "scripted zeros"]


@pytest.fixture(scope="session")
def tiny(tiny_models):
    [teacher] = read_model_directory(tiny_models)
    assert teacher.fault is None
    return teacher


@pytest.fixture
def make(tiny, request):
    def make_backend(**options):
        card = tiny.card
        match request.param:
            case "onnx":
                options["threads"] = options.pop("slots", 3) - 1
                return OnnxBackend(card, tiny.model_file, **options)
            case "triton":
                # As many slots as its model configuration says.
                options.pop("slots", None)
                return TritonBackend(card, request.getfixturevalue("triton").grpc, **options)
            case "scripted":
                return ScriptedBackend(card, script=lambda *asked: marked_outputs(card, *asked), **options)
            case _:
                return ScriptedBackend(card, **options)

    return make_backend


every_backend = pytest.mark.parametrize("make", BACKENDS, indirect=True)


def crops_for(card, num: int) -> np.ndarray:
    return np.random.default_rng(num).integers(0, 256, (num, *card.crop_format.shape), dtype=np.uint8)


def slots_due(backend) -> int:
    """Of a backend that was asked for three: on Triton one more than the one instance of its model."""
    return 2 if isinstance(backend, TritonBackend) else 3


@every_backend
@on_loop
async def test_outputs_are_named_and_have_the_cards_shapes(make, tiny):
    backend, card = make(), tiny.card
    await backend.start()
    shapes = {card.label_output: (card.num_classes,), "logits": (card.num_classes,)}
    shapes |= {output.name: output.shape for output in card.features}
    for outputs in [(card.label_output,), tuple(shapes), *((name,) for name in shapes)]:
        for num in (1, 2, backend.largest_batch):
            answers = await backend.run(crops_for(card, num), outputs)
            assert set(answers) == set(outputs)
            for name in outputs:
                assert answers[name].shape == (num, *shapes[name])
                assert np.issubdtype(answers[name].dtype, np.floating)
    await backend.close()


@every_backend
@on_loop
async def test_a_crops_answer_does_not_depend_on_its_neighbours(make, tiny):
    backend, label = make(), tiny.card.label_output
    await backend.start()
    crops = crops_for(tiny.card, backend.largest_batch)
    together = (await backend.run(crops, (label,)))[label]
    for row in (0, 5, len(crops) - 1):
        alone = (await backend.run(crops[row : row + 1], (label,)))[label]
        assert np.array_equal(alone[0], together[row])
    await backend.close()


@every_backend
@on_loop
async def test_calls_side_by_side_each_get_their_own_answer(make, tiny):
    backend, label = make(slots=3), tiny.card.label_output
    await backend.start()
    assert backend.slots == slots_due(backend)
    batches = [crops_for(tiny.card, num) for num in (1, 4, 3, 8, 2, 7)]
    one_by_one = [(await backend.run(crops, (label,)))[label].copy() for crops in batches]
    at_once = await asyncio.gather(*(backend.run(crops, (label,)) for crops in batches))
    for alone, answers in zip(one_by_one, at_once, strict=True):
        assert np.array_equal(answers[label], alone)
    await backend.close()


@every_backend
@on_loop
async def test_pixels_may_be_a_read_only_view_and_are_not_changed(make, tiny):
    backend, label = make(), tiny.card.label_output
    await backend.start()
    crops = crops_for(tiny.card, 3)
    view = np.frombuffer(b"\0" + crops.tobytes(), np.uint8, offset=1).reshape(crops.shape)
    assert not view.flags.writeable
    answers = await backend.run(view, (label,))
    again = await backend.run(crops, (label,))
    assert np.array_equal(answers[label], again[label])
    assert np.array_equal(view, crops)
    await backend.close()


@every_backend
@on_loop
async def test_the_event_loop_goes_on_while_it_computes(make, tiny):
    backend, turns = make(), 0
    await backend.start()
    running = asyncio.ensure_future(backend.run(crops_for(tiny.card, backend.largest_batch), (tiny.card.label_output,)))
    while not running.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns >= 1
    await backend.close()


@every_backend
@on_loop
async def test_what_breaks_a_call_raises_and_the_next_one_works(make, tiny):
    backend, label = make(), tiny.card.label_output
    await backend.start()
    with pytest.raises(Exception, match=r".") as caught:
        await backend.run(crops_for(tiny.card, 2), ("no such output",))
    assert not isinstance(caught.value, asyncio.CancelledError)
    assert len((await backend.run(crops_for(tiny.card, 2), (label,)))[label]) == 2
    with pytest.raises(Exception, match=r".") as caught:
        await backend.run_alone(crops_for(tiny.card, 2), ("no such output",))
    assert not isinstance(caught.value, FailedInCompany | BackendUnreachable | asyncio.CancelledError)
    assert len((await backend.run_alone(crops_for(tiny.card, 2), (label,)))[label]) == 2
    await backend.close()


@every_backend
@on_loop
async def test_closing_lets_running_calls_end_and_may_be_done_twice_or_unstarted(make, tiny):
    await make().close()
    backend, label = make(slots=1), tiny.card.label_output
    await backend.start()
    calls = [asyncio.ensure_future(backend.run(crops_for(tiny.card, 4), (label,))) for _ in range(5)]
    await asyncio.sleep(0)
    await backend.close()
    assert [len(answers[label]) for answers in await asyncio.gather(*calls)] == [4] * 5
    await backend.close()


@every_backend
@on_loop
async def test_limits_are_said_and_provider_class_has_a_name(make):
    backend = make(largest_batch=5, slots=3)
    await backend.start()
    assert (backend.largest_batch, backend.slots) == (5, slots_due(backend))
    assert backend.provider_class
    assert backend.provider_class != "unknown"
    await backend.close()


@on_loop
async def test_onnx_runtime_gives_the_golden_answers(tiny):
    backend = OnnxBackend(tiny.card, tiny.model_file, threads=1)
    await backend.start()
    assert await check_golden_answers(tiny.card, tiny.golden_file, backend) < 1e-3
    assert backend.provider_class == "cpu"
    assert "OnnxBackend tiny cpu slots=2" in repr(backend)
    await backend.close()


@pytest.mark.parametrize(
    ("damage", "options", "words"),
    [
        (lambda model: model[: len(model) // 2], {}, "cannot load model.onnx.*export it again"),
        (lambda model: b"", {}, "cannot load model.onnx"),
        (lambda model: model, {"providers": ["CUDAExecutionProvider"]}, "no CUDAExecutionProvider; it has .*CPU"),
    ],
)
@on_loop
async def test_a_model_that_onnx_runtime_cannot_run_is_a_damaged_artifact(tiny, tmp_path, damage, options, words):
    (tmp_path / "model.onnx").write_bytes(damage(tiny.model_file.read_bytes()))
    backend = OnnxBackend(tiny.card, tmp_path / "model.onnx", **options)
    with pytest.raises(DamagedArtifact, match=words):
        await backend.start()
    await backend.close()


@pytest.mark.parametrize(("largest", "calls"), [(None, [3, 3, 1]), (5, [5, 2]), (8, [7])])
@on_loop
async def test_a_cpu_is_called_with_what_fits_its_cache_and_answers_the_same(tiny, monkeypatch, largest, calls):
    monkeypatch.setattr(onnx_backend, "CPU_CALL_BYTES", 3 * tiny.card.crop_format.crop_bytes + 1)
    backend, label = OnnxBackend(tiny.card, tiny.model_file, threads=1, largest_batch=largest), tiny.card.label_output
    await backend.start()
    crops, outputs = crops_for(tiny.card, 7), (label, "embedding")
    one_by_one = [await backend.run(crops[row : row + 1], outputs) for row in range(7)]
    session, called = backend._session, []

    class Watched:
        def run(self, names, inputs):
            called.append(len(inputs["crops"]))
            return session.run(names, inputs)

    monkeypatch.setattr(backend, "_session", Watched())
    answers = await backend.run(crops, outputs)
    assert called == calls
    for name in outputs:
        np.testing.assert_allclose(answers[name], np.concatenate([one[name] for one in one_by_one]), atol=1e-5)
    monkeypatch.setattr(backend, "_session", session)
    await backend.close()


@pytest.mark.parametrize(
    ("largest", "ladder"),
    [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8)), (33, (1, 2, 4, 8, 16, 32, 33))],
)
def test_sizes_that_are_warmed_on_a_gpu(largest, ladder):
    assert size_ladder(largest) == ladder


@on_loop
async def test_padding_to_a_warmed_size_changes_no_answer(tiny, monkeypatch):
    backend, label = OnnxBackend(tiny.card, tiny.model_file, threads=1, largest_batch=6), tiny.card.label_output
    await backend.start()
    plain = [(await backend.run(crops_for(tiny.card, num), (label,)))[label] for num in range(1, 7)]
    monkeypatch.setattr(OnnxBackend, "on_gpu", True)
    for num in range(1, 7):
        padded = (await backend.run(crops_for(tiny.card, num), (label,)))[label]
        assert np.array_equal(padded, plain[num - 1])
    await backend.close()
