"""Measures the student of a game in progress on real and on generated images, for recordings and live runs."""

import torch
import torch.nn.functional as F

from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.game.game import Game


@torch.no_grad()
def probe(game: Game, data: ImageSet, *, generated: int = 64) -> dict[str, float]:
    """How good Q is now, changing nothing: on `data` and on generated images it has not been trained on.

    test.accuracy: top-1 on `data`, percent; test.loss: its cross-entropy there, nats; test.agreement: share of `data` on
    which Q predicts what P predicts; train.loss: its cross-entropy with the classes asked of G, on `generated` images, nats
    """
    with game.student.frozen():
        logits, teacher_logits = [], []
        for images, _ in data.batches(100):
            x = game.teacher.normalize(images)
            logits.append(game.student(x))
            teacher_logits.append(game.teacher(x))
        z_q, z_p = torch.cat(logits), torch.cat(teacher_logits)
        labels = data.labels.to(z_q.device)
        y = (torch.arange(generated) % game.classes).to(game.device)
        batches = y.split(game.schedule.batch)
        made = torch.cat([game.student(game.generate(one, seed=i)) for i, one in enumerate(batches)])
    predicted = z_q.argmax(1)
    return {
        "test.accuracy": 100 * float((predicted == labels).float().mean()),
        "test.loss": float(F.cross_entropy(z_q, labels)),
        "test.agreement": float((predicted == z_p.argmax(1)).float().mean()),
        "train.loss": float(F.cross_entropy(made, y)),
    }
