"""Adam's step as recover takes it, with a clamp to valid pixels."""
import torch

BETAS = (0.5, 0.9)
EPS = 1e-8


def adam_rates(learning_rates):
    """What Adam's step needs of the step number, for steps 1, 2, ... T -> (T, 2) float64.

    Each is (lr / (1 - beta1^t), sqrt(1 - beta2^t))."""
    rates = torch.tensor(learning_rates, dtype=torch.float64)
    step = torch.arange(1, len(rates) + 1, dtype=torch.float64)
    return torch.stack((rates / (1 - BETAS[0] ** step), (1 - BETAS[1] ** step).sqrt()), 1)


def adam_step(images, first, second, gradient, rate, low, high):
    """Adam's step and the clamp to valid pixels, in place.

    images, moments, gradient: of one shape; rate: a row of adam_rates; low, high: (3, 1, 1)."""
    first.lerp_(gradient, 1 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    images.sub_(rate[0] * first / (second.sqrt() / rate[1] + EPS))
    torch.clamp(images, low, high, out=images)
