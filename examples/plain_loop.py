"""A loop of one's own: headstart gives the meta-gradient, torch the optimizer, and everything between is yours.

python examples/plain_loop.py
"""

import torch

import headstart as hs


def main(steps: int = 60, ways: int = 5, shots: int = 1) -> tuple[hs.Evaluation, hs.Evaluation]:
    """Trains a start on small rendered characters; the evaluations before and after, on characters that it never saw."""
    torch.manual_seed(0)
    hs.tune_process()
    data = hs.data.load("glyphs")
    learner = hs.anil(hs.models.conv4(channels=1, ways=ways, size=28, filters=16), steps=5, lr=0.4)
    optimizer = torch.optim.AdamW(learner.parameters().values(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    episodes = hs.data.Episodes(data.train, ways=ways, shots=shots, queries=5, tasks=8)
    before = hs.evaluate(learner, data.test, ways=ways, shots=shots, episodes=100)
    for step in range(steps):
        gradients, stats = learner.meta_gradient(episodes.batch(step))
        for name, parameter in learner.parameters().items():
            parameter.grad = gradients[name]
        torch.nn.utils.clip_grad_norm_(learner.parameters().values(), 10.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 20 == 0:
            print(f"step {step + 1}: loss {float(stats.loss):.3f}")
    hs.estimate_batch_norm(learner, data.train)  # running averages trail the weights
    return before, hs.evaluate(learner, data.test, ways=ways, shots=shots, episodes=100)


if __name__ == "__main__":
    for result in main():
        print(result)
