"""Kept labels behind the gateway, in real stores: what they answer, and that no tenant reads, guesses or poisons
another's.
"""

from contextlib import asynccontextmanager

import numpy as np
import pytest

from teacherfarm.label_store.label_store import SHARED
from teacherfarm.protos.crop import CROP_KEY_BYTES, CropBatch, pixel_keys
from teacherfarm.protos.messages import Hello
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.teacher_server import kept_labels
from teacherfarm.teacher_server.projects.project import Allowance
from teacherfarm.teacher_server.slice_crops import SentCrops
from tests.label_stores import KINDS, reached, running_store
from tests.on_loop import on_loop
from tests.unit.teacher_server.scripted import ScriptedFarm, crops, entries, keyed, make_card, records_of

every_store = pytest.mark.parametrize("kind", KINDS)
SHARING = Allowance(share_labels=True)


@asynccontextmanager
async def running_farm(kind, folder, *cards, **allowances):
    """A gateway with kept labels, for projects that may do this."""
    allowances = allowances or {"a": Allowance(), "b": Allowance()}
    async with running_store(kind, folder) as store:
        async with ScriptedFarm(folder, *cards, projects=keyed(**allowances), kept=store) as farm:
            count_puts(farm, store)
            yield farm


def count_puts(farm, store):
    """``farm.num_put``: labels that the gateway gave to the store."""
    farm.store, farm.num_put, put = store, 0, store.put

    def counted(scope, keys, records):
        farm.num_put += len(keys)
        put(scope, keys, records)

    store.put = counted


def session(farm, project="a", **changes):
    values = {"teacher": "scripted", "spec": LabelSpec(), "api_key": f"key of {project}"} | changes
    return farm.gateway.open_session(Hello(**values))


async def ask(farm, open_session, *firsts, keys=None):
    """The records; whatever was put into the store for them is written before this returns."""
    pixels = crops(*firsts)
    batch = CropBatch(pixels=pixels, keys=pixel_keys(pixels) if keys is None else keys)

    async def decode():
        return SentCrops(batch)

    records = await farm.gateway.label(open_session, len(batch), decode)
    open_session.credit.took(open_session.credit.untaken_crops)
    due = farm.num_put
    await reached(lambda: farm.store.stats()[-1].written + farm.store.stats()[-1].dropped >= due)
    return records


def computed(farm):
    return sorted(first for firsts in farm.teacher.seen for first in firsts)


def right(records, *firsts):
    return np.array_equal(records["labels"], records_of(*firsts))


@every_store
@on_loop
async def test_what_was_asked_once_is_not_computed_again(kind, tmp_path):
    async with running_farm(kind, tmp_path) as farm:
        assert right(await ask(farm, session(farm), 1, 2, 3), 1, 2, 3)
        again = session(farm)
        assert again.welcome.keys_wanted
        assert right(await ask(farm, again, 3, 4, 1), 3, 4, 1)
        assert computed(farm) == [1, 2, 3, 4]
        assert farm.metric("store_hits_total", teacher="scripted", project="a") == 2
        assert farm.metric("store_misses_total", teacher="scripted", project="a") == 4
        assert farm.metric("labels_total", teacher="scripted", project="a") == 6


@every_store
@on_loop
async def test_a_tenant_reads_none_of_anothers_labels(kind, tmp_path):
    async with running_farm(kind, tmp_path) as farm:
        await ask(farm, session(farm, "a"), 1)
        # The very keys of another's crops, with pixels of its own: the answer is the teacher's to these pixels.
        assert right(await ask(farm, session(farm, "b"), 9, keys=pixel_keys(crops(1))), 9)
        assert computed(farm) == [1, 9]
        assert farm.metric("store_hits_total", teacher="scripted", project="b") == 0


@every_store
@on_loop
async def test_a_tenant_guesses_keys_in_vain(kind, tmp_path):
    async with running_farm(kind, tmp_path, a=SHARING, b=SHARING, c=Allowance()) as farm:
        await ask(farm, session(farm, "a"), 1)
        digest = (await kept_labels.pixel_digests(crops(1)))[0]
        guesses = [digest[:CROP_KEY_BYTES], digest[CROP_KEY_BYTES:], bytes(16), pixel_keys(crops(1))]
        for project in ("b", "c"):
            for guess in guesses:
                assert right(await ask(farm, session(farm, project), 9, keys=guess), 9)
        # Also in each other's project names: no name reaches into the labels in common.
        assert SHARED not in farm.gateway._door._projects._projects
        assert 1 not in computed(farm)[1:]


@every_store
@on_loop
async def test_a_tenant_poisons_nobody_but_itself(kind, tmp_path):
    async with running_farm(kind, tmp_path, a=SHARING, b=SHARING) as farm:
        forged = pixel_keys(crops(1))
        # It claims crop 1's key for other pixels, then asks crop 1 itself: what it kept under the key comes back ...
        assert right(await ask(farm, session(farm, "a"), 9, keys=forged), 9)
        assert right(await ask(farm, session(farm, "a"), 1, keys=forged), 9)
        # ... to itself. Whoever shares with it gets the teacher's own answer, computed from these pixels.
        assert right(await ask(farm, session(farm, "b"), 1), 1)
        assert right(await ask(farm, session(farm, "b"), 9), 9)
        assert computed(farm) == [1, 9]


@every_store
@on_loop
async def test_projects_that_share_compute_a_crop_once(kind, tmp_path):
    async with running_farm(kind, tmp_path, a=SHARING, b=SHARING, c=Allowance()) as farm:
        await ask(farm, session(farm, "a"), 1, 2)
        assert right(await ask(farm, session(farm, "b"), 2, 3), 2, 3)
        assert computed(farm) == [1, 2, 3]
        # Neither finds nor gives who did not choose to.
        await ask(farm, session(farm, "c"), 1, 4)
        assert computed(farm) == [1, 1, 2, 3, 4]
        await ask(farm, session(farm, "b"), 4)
        assert computed(farm) == [1, 1, 2, 3, 4, 4]


@on_loop
async def test_sharing_follows_the_projects_file(tmp_path):
    async with running_farm("memory", tmp_path, a=SHARING, b=Allowance()) as farm:
        await ask(farm, session(farm, "a"), 1)
        open_session = session(farm, "b")
        farm.gateway.update_projects(entries(a=SHARING, b=SHARING))
        await ask(farm, open_session, 1)
        assert computed(farm) == [1]


@every_store
@on_loop
async def test_a_dense_label_answers_top_k_and_never_the_other_way_round(kind, tmp_path):
    top = LabelSpec(top_k=3, temperature=2.0)
    async with running_farm(kind, tmp_path) as farm:
        await ask(farm, session(farm), 1)
        of_dense = await ask(farm, session(farm, spec=top), 1, 2)
        assert computed(farm) == [1, 2]
        # The same bits as the teacher's own.
        assert of_dense[0] == (await ask(farm, session(farm, "b", spec=top), 1))[0]
        assert computed(farm) == [1, 1, 2]
        assert right(await ask(farm, session(farm), 2), 2)
        await ask(farm, session(farm, spec=LabelSpec(top_k=3, temperature=3.0)), 2)
        await ask(farm, session(farm, spec=LabelSpec(top_k=2, temperature=2.0)), 2)
        # Both were cut from the dense one that was computed for crop 2 in the end.
        assert computed(farm) == [1, 1, 2, 2]


@on_loop
async def test_another_file_under_the_same_name_answers_nothing(tmp_path):
    async with running_store("memory", tmp_path) as store:
        for digest in ("first", "second"):
            folder = tmp_path / digest
            folder.mkdir()
            card = make_card(artifact_digest=digest)
            async with ScriptedFarm(folder, card, projects=keyed(a=Allowance()), kept=store) as farm:
                count_puts(farm, store)
                farm.num_put += store.stats()[0].written
                await ask(farm, session(farm), 1)
                assert computed(farm) == [1]


@on_loop
async def test_without_keys_nothing_is_kept(tmp_path):
    async with running_farm("memory", tmp_path) as farm:
        await ask(farm, session(farm), 1, keys=b"")
        await ask(farm, session(farm), 1, keys=b"")
        assert computed(farm) == [1, 1]
        assert farm.store.stats()[0].kept_labels == 0


@on_loop
async def test_what_is_not_a_number_is_answered_and_not_kept(tmp_path):
    async with running_farm("memory", tmp_path, a=SHARING) as farm:
        compute, times = farm.gateway._compute, []

        async def broken_once(*arguments):
            records = await compute(*arguments)
            if not times:
                records["labels"][0, 0] = np.nan
            times.append(len(records))
            return records

        farm.gateway._compute = broken_once
        first = await ask(farm, session(farm), 1, 2)
        assert np.isnan(first["labels"][0, 0])
        assert right(first[1:], 2)
        assert right(await ask(farm, session(farm), 1, 2), 1, 2)
        assert times == [2, 1]


@on_loop
async def test_crops_in_flight_are_released_once_they_are_kept(tmp_path):
    async with running_farm("memory", tmp_path) as farm:
        kept_at_release = []
        release = farm.gateway._in_flight.forget_when_empty
        farm.gateway._in_flight.forget_when_empty = lambda scope: (
            kept_at_release.append(farm.store.stats()[0].kept_labels),
            release(scope),
        )
        await ask(farm, session(farm), 1, 2)
        assert kept_at_release == [2]
