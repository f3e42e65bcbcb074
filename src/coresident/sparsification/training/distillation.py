"""Knowledge distillation: the loss of a student that is to answer as its teacher does."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from coresident.errors import InputError

Answer = Literal["softmax", "sigmoid"]


def divergence(student: Tensor, teacher: Tensor, temperature: float, answer: Answer = "softmax") -> Tensor:
    """The Kullback-Leibler divergence of the student's answers from the teacher's, times temperature².

    Args:
        student, teacher: logits [N, C] or, for an answer at each pixel, [N, C, ...].
        temperature: both are divided by it (Hinton, Vinyals and Dean, 2015).
        answer: "softmax" over the channels, or "sigmoid" for each channel by itself.

    Returns:
        The mean over samples and pixels (and channels, for "sigmoid"), a scalar.

    Raises:
        InputError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise InputError(
            f"the student answers {list(student.shape)}, the teacher {list(teacher.shape)}; which differs"
        )
    mine, other = student.float() / temperature, teacher.float() / temperature
    if answer == "softmax":
        one, two = functional.log_softmax(mine, 1), functional.log_softmax(other, 1)
        each = (two.exp() * (two - one)).sum(1)
    else:
        p = other.sigmoid()
        each = p * (functional.logsigmoid(other) - functional.logsigmoid(mine))
        each = each + (1 - p) * (functional.logsigmoid(-other) - functional.logsigmoid(-mine))
    scaled: Tensor = torch.mean(each) * temperature**2
    return scaled
