import os
import random

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from teacherfarm.protos.faults import DigestMismatch
from teacherfarm.student.checkpoint import Run, latest_checkpoint, list_checkpoints, load_checkpoint, save_checkpoint
from teacherfarm.student.labelled_loader import LabelledLoader
from teacherfarm.student.losses import soft_cross_entropy
from tests.unit.student.fake_teacher import FakeTeacher

torch.set_num_threads(1)


class Crops(Dataset):
    """Random crops, drawn in the worker: the order and the pixels both come from torch's generators."""

    def __len__(self):
        return 30

    def __getitem__(self, index):
        crop = torch.randint(256, (8, 8, 3), dtype=torch.uint8)
        crop[0, 0, 0] = index
        return crop


class Training:
    """A run with everything that has a state: dropout, momentum, schedule, average, shuffled and augmented
    crops.
    """

    def __init__(self, workers=0, digest=None, **settings):
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(192, 10))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 24)
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        self.teacher = FakeTeacher()
        loader = DataLoader(Crops(), batch_size=4, shuffle=True, num_workers=workers)
        self.loader = LabelledLoader(loader, self.teacher, lambda crops: crops)
        self.run = Run(
            parts={"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler, "ema": self.ema},
            loader=self.loader,
            teachers={"fake": digest or self.teacher.card.teacher_digest},
            settings=settings,
        )

    def train(self, folder=None, epoch=0, stop_after=None, every=1):
        """Three epochs; saves after every step, and stops (as if killed) after ``stop_after`` steps."""
        steps = 0
        for epoch_now in range(epoch, 3):
            self.loader.set_epoch(epoch_now)
            for crops, labels in self.loader:
                self.optimizer.zero_grad()
                soft_cross_entropy(self.model(crops.float() / 255 - 0.5), labels).backward()
                self.optimizer.step()
                self.scheduler.step()
                self.ema.update_parameters(self.model)
                random.random(), np.random.rand()
                steps += 1
                if folder is not None and steps % every == 0:
                    save_checkpoint(folder, self.run, step=steps, progress={"epoch": epoch_now})
                if steps == stop_after:
                    return
        self.draws = random.random(), np.random.rand(), torch.rand(1).item()


def states(training):
    return {name: part.state_dict() for name, part in training.run.parts.items()}, training.draws


# Workers: only then are the crops' random numbers out of the main process, where asking ahead would interleave them
# with dropout's.
@pytest.mark.parametrize("stop_after", [5, 8, 13, 16])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, stop_after):
    undisturbed = Training(workers=1)
    random.seed(5)
    np.random.seed(5)
    undisturbed.train()

    killed = Training(workers=1)
    random.seed(5)
    np.random.seed(5)
    killed.train(tmp_path, stop_after=stop_after)

    resumed = Training(workers=1)
    torch.manual_seed(999)
    random.seed(999)
    np.random.seed(999)
    progress = load_checkpoint(latest_checkpoint(tmp_path), resumed.run)
    resumed.train(epoch=progress["epoch"])
    torch.testing.assert_close(states(resumed), states(undisturbed), rtol=0, atol=0)


def test_another_teacher_is_refused_and_both_are_named(tmp_path):
    path = save_checkpoint(tmp_path, Training().run, step=1, progress={})
    other = Training(digest="digest-of-somebody-else")
    before = [parameter.clone() for parameter in other.model.parameters()]
    with pytest.raises(DigestMismatch, match=r"'fake' of digest digest-of-fake, this run has digest-of-somebody-else"):
        load_checkpoint(path, other.run)
    assert all(torch.equal(a, b) for a, b in zip(before, other.model.parameters(), strict=True))


def test_other_settings_or_parts_are_refused(tmp_path):
    path = save_checkpoint(tmp_path, Training(view_schedule={"views": 200}).run, step=1, progress={})
    with pytest.raises(ValueError, match=r"view_schedule = {'views': 200}, this run has {'views': 100}"):
        load_checkpoint(path, Training(view_schedule={"views": 100}).run)
    with pytest.raises(ValueError, match=r"holds .*'ema'"):
        load_checkpoint(
            path, Run(parts={}, teachers={"fake": "digest-of-fake"}, settings={"view_schedule": {"views": 200}})
        )


def test_keeps_the_newest(tmp_path):
    run = Run(parts={"model": nn.Linear(1, 1)})
    assert latest_checkpoint(tmp_path / "none") is None
    for step in (5, 20, 100, 1000):
        save_checkpoint(tmp_path, run, step=step, progress={}, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000000100.pt", "step-000001000.pt"]
    assert sorted(os.listdir(tmp_path)) == ["step-000000100.pt", "step-000001000.pt"]
    with pytest.raises(ValueError, match="keep is at least 1"):
        save_checkpoint(tmp_path, run, step=1, progress={}, keep=0)


class Unwritable(nn.Module):
    def state_dict(self, *args, **kwargs):
        return {"weight": lambda: None}  # cannot be pickled


def test_a_failed_write_leaves_the_older_checkpoint_alone(tmp_path):
    save_checkpoint(tmp_path, Run(parts={"model": nn.Linear(1, 1)}), step=1, progress={})
    whole = (tmp_path / "step-000000001.pt").read_bytes()
    with pytest.raises(Exception, match=r"[Pp]ickle"):
        save_checkpoint(tmp_path, Run(parts={"model": Unwritable()}), step=1, progress={})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001.pt"]
    assert (tmp_path / "step-000000001.pt").read_bytes() == whole


def test_what_is_no_checkpoint_is_refused(tmp_path):
    run = Run(parts={"model": nn.Linear(1, 1)})
    with pytest.raises(ValueError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "step-000000001.pt", run)
    (tmp_path / "torn.pt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(tmp_path / "torn.pt", run)
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="not a checkpoint of this version"):
        load_checkpoint(tmp_path / "other.pt", run)

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    torch.save({"version": 1, "x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(tmp_path / "evil.pt", run)
    assert not (tmp_path / "owned").exists()


def one_rank(rank, folder, out):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=2)
    try:
        torch.manual_seed(rank)
        run = Run(parts={"model": nn.Linear(1, 1)})
        for step in (1, 2):
            path = save_checkpoint(folder, run, step=step, progress={"epoch": 7}, keep=1)
        drawn = torch.rand(4)
        distributed.barrier()
        progress = load_checkpoint(path, run)
        torch.save({"same": torch.equal(torch.rand(4), drawn), "epoch": progress["epoch"]}, out / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()


def test_every_rank_gets_its_own_random_state_back(tmp_path):
    folder = tmp_path / "run"
    multiprocessing.spawn(one_rank, args=(folder, tmp_path), nprocs=2)
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == [{"same": True, "epoch": 7}] * 2
    assert sorted(os.listdir(folder)) == ["step-000000002.pt", "step-000000002.rank1.pt"]
    with pytest.raises(ValueError, match="saved by 2 processes, this run has 1"):
        load_checkpoint(folder / "step-000000002.pt", Run(parts={"model": nn.Linear(1, 1)}))
