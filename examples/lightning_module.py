"""The same in Lightning: manual optimisation, as the gradients do not come from a backward() of Lightning's.

pip install 'headstart[lightning]'; python examples/lightning_module.py
"""

from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader, Dataset

import headstart as hs


class Batches(Dataset[hs.TaskBatch]):
    """Meta-batches by number: a batch is a function of the seed and its number alone."""

    def __init__(self, episodes: hs.data.Episodes, size: int) -> None:
        self.episodes, self.size = episodes, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> hs.TaskBatch:
        return self.episodes.batch(index)


class MetaModule(lightning.LightningModule):
    """Meta-trains a learner; its model is a submodule, so that Lightning moves, counts and checkpoints it."""

    def __init__(self, learner: hs.MetaLearner, lr: float = 3e-3) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.learner, self.lr = learner.model, learner, lr

    def training_step(self, tasks: hs.TaskBatch, index: int) -> None:
        """One outer step."""
        optimizer: Any = self.optimizers()
        gradients, stats = self.learner.meta_gradient(tasks)
        for name, parameter in self.learner.parameters().items():
            parameter.grad = gradients[name]
        self.clip_gradients(optimizer, gradient_clip_val=10.0, gradient_clip_algorithm="norm")
        optimizer.step()
        self.log_dict({"loss": float(stats.loss), "accuracy": float(stats.accuracy or 0.0)}, prog_bar=True, batch_size=len(tasks))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """An optimizer of everything that the outer loop trains, the inner solver's own parameters too."""
        return torch.optim.AdamW(self.learner.parameters().values(), lr=self.lr)


def main(steps: int = 60, folder: str | None = None) -> tuple[hs.Evaluation, hs.Evaluation]:
    """Trains a start; the evaluations before and after, on characters that it never saw."""
    lightning.seed_everything(0, verbose=False)
    hs.tune_process()
    data = hs.data.load("glyphs")
    learner = hs.anil(hs.models.conv4(channels=1, ways=5, size=28, filters=16), steps=5, lr=0.4)
    before = hs.evaluate(learner, data.test, ways=5, shots=1, episodes=100)
    batches = DataLoader(Batches(hs.data.Episodes(data.train, ways=5, shots=1, queries=5, tasks=8), steps), batch_size=None)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=folder, enable_checkpointing=folder is not None, **quiet)
    trainer.fit(MetaModule(learner), batches)
    hs.estimate_batch_norm(learner, data.train)
    return before, hs.evaluate(learner, data.test, ways=5, shots=1, episodes=100)


if __name__ == "__main__":
    for result in main():
        print(result)
