"""Everyday constructs of PyTorch models, each as the smallest problem that has it, by name.

``RIGHT`` must be measured right; ``REFUSED`` must be refused, in the words given. All are float64 classifiers
or regressors over a handful of examples; the weights are drawn from a seed.
"""

import warnings

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from tests.models import seeded

N = 12  # examples


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integers(high, *shape, seed=0):
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


class Applied(nn.Module):
    """A function of the features, between two linear layers."""

    def __init__(self, function, width=6, out=6):
        super().__init__()
        self.before, self.after = nn.Linear(4, width), nn.Linear(out, 3)
        self.function = function  # a module is registered, a plain function is not

    def forward(self, x):
        return self.after(self.function(self.before(x)))


def classifier(build, inputs=None, loss=None):
    """Return (model, loss, data): three classes over ``inputs`` (N, …), four normal features by default."""
    inputs = draw(N, 4) if inputs is None else inputs
    return seeded(build).double(), loss or nn.CrossEntropyLoss(), (inputs, integers(3, N, seed=1))


def between(function, width=6, out=6):
    return lambda: classifier(
        lambda: Applied(function() if isinstance(function, type) else function, width, out)
    )


def image(*layers):
    return lambda: classifier(lambda: nn.Sequential(*(layer() for layer in layers)), draw(N, 2, 6, 6))


class Sequence(nn.Module):
    """A recurrent or attention layer over (N, T, 4), its mean over time classified."""

    def __init__(self, layer, width=4):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 3)

    def forward(self, x):
        out = self.layer(x)
        return self.head((out[0] if isinstance(out, tuple) else out).mean(1))


def sequence(layer, width=4):
    return lambda: classifier(lambda: Sequence(layer(), width), draw(N, 5, 4))


class SelfAttention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.options = options

    def forward(self, x):
        return self.attention(x, x, x, **self.options)


class DotProduct(nn.Module):
    def __init__(self, causal=False, dropout=0.0):
        super().__init__()
        self.project = nn.Linear(4, 12)
        self.causal, self.dropout = causal, dropout

    def forward(self, x):
        q, k, v = self.project(x)[:, None].chunk(3, -1)
        dropout = self.dropout if self.training else 0.0
        return functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal, dropout_p=dropout)[
            :, 0
        ]


class Bags(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.bags, self.head = nn.EmbeddingBag(9, 4, mode=mode), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.bags(x)))


class Rows(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.rows, self.head = nn.Embedding(9, 4, **options), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.rows(x)).mean(1))


def tokens(build):
    return lambda: classifier(build, integers(9, N, 3))


class Checkpointed(nn.Module):
    def __init__(self, reentrant, depth):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.reentrant, self.depth = reentrant, depth

    def _block(self, x):
        return torch.tanh(self.b(x)) if self.depth else torch.tanh(self.a(x))

    def forward(self, x):
        if self.depth:
            x = self.a(x)
        with warnings.catch_warnings():  # "None of the inputs have requires_grad=True"
            warnings.simplefilter("ignore")
            x = checkpoint(self._block, x, use_reentrant=self.reentrant)
        return self.c(x)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
        self.head.weight = self.rows.weight

    def forward(self, x):
        return self.head(torch.tanh(self.rows(x)).mean(1))[:, :3]


class LowRank(nn.Module):
    """A frozen layer with a trained low-rank update whose second factor starts at zero, as LoRA's does."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(4, 6).requires_grad_(False)
        self.down, self.up = nn.Linear(4, 2, bias=False), nn.Linear(2, 6, bias=False)
        nn.init.zeros_(self.up.weight)
        self.head = nn.Linear(6, 3).requires_grad_(False)

    def forward(self, x):
        return self.head(torch.tanh(self.base(x) + self.up(self.down(x))))


class Sine(torch.autograd.Function):
    """Right: its backward can be differentiated again."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * x.cos()


class SineDetached(torch.autograd.Function):
    """The first derivative is right, the second loses a term without a word."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach()
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.x.cos()


class SineOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()


class SineWrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].sin()


class SineSlightlyWrong(SineWrong):
    @staticmethod
    def backward(ctx, grad):
        return 1.01 * grad * ctx.saved_tensors[0].cos()


class Straight(torch.autograd.Function):
    """A straight-through estimator: rounds, and passes the gradient on as if it did not."""

    @staticmethod
    def forward(ctx, x):
        return (x * 4).round() / 4

    @staticmethod
    def backward(ctx, grad):
        return grad


class StopHalf(nn.Module):
    """A branch that is stopped, as SimSiam's is."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = torch.tanh(self.encoder(x))
        return self.head(h * (1 + h.detach()))


class StoppedTarget(nn.Module):
    """A stopped branch whose own weights are not trained: the gradient is right."""

    def __init__(self):
        super().__init__()
        self.online, self.target = nn.Linear(4, 3), nn.Linear(4, 3)
        self.target.requires_grad_(False)

    def forward(self, x):
        return self.online(x) - self.target(x).detach()


class Numpy(nn.Module):
    """Leaves autograd for a moment."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.b(torch.from_numpy(self.a(x).detach().numpy().copy()).tanh())


class Batchwise(nn.Module):
    """Normalises by the batch in evaluation mode too, as BatchNorm without running statistics does."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Tanh(), nn.Linear(6, 3)
        )

    def forward(self, x):
        return self.layers(x)


class Moving(nn.Module):
    """Writes to a buffer that its output does not depend on, in every mode."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, x):
        h = torch.tanh(self.a(x))
        self.seen.mul_(0.9).add_(h.detach().mean(0))
        return self.b(h)


class Counting(nn.Module):
    """Becomes another function with every call, by a buffer that it writes to: what it holds now counts."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 3)
        self.register_buffer("calls", torch.ones(()))

    def forward(self, x):
        self.calls += 1
        return self.a(x) * self.calls.clone()


class Outside(nn.Module):
    """Becomes another function with every call, by something that nobody can put back."""

    calls = 0

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(self, x):
        Outside.calls += 1
        return self.a(x) * Outside.calls


class Noise(nn.Module):
    def forward(self, x):
        return x * (1 + 0.5 * torch.randn_like(x))


class AlwaysDrops(nn.Module):
    def forward(self, x):
        return functional.dropout(x, 0.5, training=True)


class LayerDrop(nn.Module):
    """Leaves out a whole layer now and then, in evaluation mode too."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        return x if torch.rand(()) < 0.25 else torch.tanh(self.inner(x))


class AlwaysRReLU(nn.Module):
    def forward(self, x):
        return functional.rrelu(x, training=True)


class DrawsInVain(nn.Module):
    """Draws a number that it does not use in evaluation mode, as some libraries do."""

    def forward(self, x):
        dropped = torch.rand(()) < 0.5
        return x if self.training and dropped else torch.tanh(x)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.randn(4, 3, dtype=torch.complex128))

    def forward(self, x):
        return (x.to(torch.complex128) @ self.a).abs()


class Spectral(nn.Module):
    """Complex numbers inside, real parameters."""

    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(3, 2))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        spectrum = torch.fft.rfft(x) * torch.view_as_complex(self.filter)
        return self.head(torch.fft.irfft(spectrum, n=4))


class Distances(nn.Module):
    def __init__(self, p=2.0):
        super().__init__()
        self.a, self.centres, self.p = nn.Linear(4, 4), nn.Parameter(torch.randn(3, 4)), p

    def forward(self, x):
        return -torch.cdist(self.a(x), self.centres, p=self.p)


class Warp(nn.Module):
    """A spatial transformer."""

    def __init__(self):
        super().__init__()
        self.shift, self.head = nn.Linear(4, 6), nn.Linear(16, 3)

    def forward(self, x):
        grid = functional.affine_grid(
            0.5 * torch.tanh(self.shift(x)).view(-1, 2, 3), [len(x), 1, 4, 4], False
        )
        return self.head(functional.grid_sample(x.view(-1, 1, 2, 2), grid, align_corners=False).flatten(1))


class Experts(nn.Module):
    """Hard routing to the best of two experts."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(4, 2), nn.ModuleList(nn.Linear(4, 3) for _ in range(2))

    def forward(self, x):
        gate = self.gate(x).softmax(-1)
        best = gate.argmax(-1)
        outputs = torch.stack([expert(x) for expert in self.experts], 1)
        return outputs[torch.arange(len(x)), best] * gate.gather(1, best[:, None])


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.idle, self.used = nn.Linear(2, 2), nn.Linear(4, 3)

    def forward(self, x):
        return self.used(x)


class Ensemble(nn.Module):
    def __init__(self):
        super().__init__()
        self.members = nn.ModuleList(nn.Linear(4, 3) for _ in range(3))
        self.weights = nn.ParameterList([nn.Parameter(torch.tensor(1.0)) for _ in range(3)])
        self.empty = nn.Parameter(torch.zeros(0))

    def forward(self, x):
        return sum(w * torch.tanh(m(x)) for w, m in zip(self.weights, self.members, strict=True))


def compiled():
    model = Applied(nn.Tanh())
    model.before = torch.compile(model.before, backend="aot_eager")
    return model


def ctc():
    def loss(model, batch):
        scores = model(batch[0]).log_softmax(-1).transpose(0, 1)
        lengths = torch.full((len(batch[0]),), 5), torch.full((len(batch[0]),), 2)
        return functional.ctc_loss(scores, batch[1], *lengths)

    model = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))).double()
    return model, loss, (draw(N, 5, 4), 1 + integers(3, N, 2, seed=1))


def regression(loss, out=3, target=None):
    """Return a tanh net under a loss on (N, out) outputs."""

    def build():
        model = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, out))).double()
        return model, loss, (draw(N, 4), draw(N, out, seed=1) if target is None else target())

    return build


def gaussian_likelihood(model, batch):
    mean, spread = model(batch[0]).chunk(2, -1)
    return functional.gaussian_nll_loss(mean, batch[1][:, :2], functional.softplus(spread) + 1e-3)


def triplet(model, batch):
    a, b, c = model(batch[0]), model(batch[0].flip(-1)), model(-batch[0])
    return functional.triplet_margin_loss(a, b, c, margin=5.0)


def contrast(model, batch):
    h = model(batch[0])
    return functional.cross_entropy(h @ h.T, torch.arange(len(h)))


def physics(model, batch):
    """The loss of a physics-informed net: derivatives by the inputs inside."""
    x = batch[0].detach().clone().requires_grad_()
    with torch.enable_grad():
        u = model(x).sum()
        (slope,) = torch.autograd.grad(u, x, create_graph=True)
    return (slope.sum(-1) - batch[0][:, 0]).square().mean()


def stopped_loss(model, batch):
    outputs = model(batch[0])
    return (outputs * (outputs - batch[1]).detach()).mean()


def parametrized(wrap):
    def build():
        return nn.Sequential(wrap(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3))

    return lambda: classifier(build)


def batch_norm():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    model[1].running_mean += 0.1
    return model


def legacy_weight_norm(layer):
    with warnings.catch_warnings():  # deprecated, and still everywhere
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer)


RIGHT = {
    "linear": lambda: classifier(lambda: nn.Linear(4, 3)),
    "tanh": between(nn.Tanh),
    "ReLU kinks": between(nn.ReLU),
    "leaky ReLU": between(nn.LeakyReLU),
    "GELU": between(nn.GELU),
    "SiLU": between(nn.SiLU),
    "softplus": between(nn.Softplus),
    "ELU": between(nn.ELU),
    "hardswish": between(nn.Hardswish),
    "PReLU": between(nn.PReLU),
    "GLU": between(nn.GLU, 6, 3),
    "softmax inside": between(lambda h: h.softmax(-1)),
    "max-out": between(lambda h: h.view(-1, 3, 2).amax(-1), 6, 3),
    "sort": between(lambda h: h.sort(-1).values),
    "clamp": between(lambda h: h.clamp(-0.5, 0.5)),
    "norm": between(lambda h: h / h.norm(dim=-1, keepdim=True)),
    "dropout": between(nn.Dropout),
    "RReLU": between(nn.RReLU),
    "convolution 1d": lambda: classifier(
        lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)), draw(N, 2, 6)
    ),
    "convolution 2d": image(lambda: nn.Conv2d(2, 3, 3), nn.Tanh, nn.Flatten, lambda: nn.Linear(48, 3)),
    "transposed convolution": image(
        lambda: nn.ConvTranspose2d(2, 2, 3), nn.Tanh, nn.Flatten, lambda: nn.Linear(128, 3)
    ),
    "grouped dilated convolution": image(
        lambda: nn.Conv2d(2, 4, 3, groups=2, dilation=2), nn.GELU, nn.Flatten, lambda: nn.Linear(16, 3)
    ),
    "max-pool": image(
        lambda: nn.Conv2d(2, 3, 3), lambda: nn.MaxPool2d(2), nn.Flatten, lambda: nn.Linear(12, 3)
    ),
    "average pool": image(
        lambda: nn.Conv2d(2, 3, 3),
        nn.ReLU,
        lambda: nn.AdaptiveAvgPool2d(2),
        nn.Flatten,
        lambda: nn.Linear(12, 3),
    ),
    "upsampling": image(
        lambda: nn.Upsample(scale_factor=2, mode="bicubic"),
        lambda: nn.Conv2d(2, 1, 5, stride=2),
        nn.Tanh,
        nn.Flatten,
        lambda: nn.Linear(16, 3),
    ),
    "batch norm": lambda: classifier(batch_norm),
    "batch norm over the batch": lambda: classifier(Batchwise),
    "layer norm": lambda: classifier(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))
    ),
    "RMS norm": lambda: classifier(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.RMSNorm(6), nn.Tanh(), nn.Linear(6, 3))
    ),
    "group norm": image(
        lambda: nn.Conv2d(2, 4, 3),
        lambda: nn.GroupNorm(2, 4),
        nn.ReLU,
        nn.Flatten,
        lambda: nn.Linear(64, 3),
    ),
    "instance norm": image(
        lambda: nn.Conv2d(2, 3, 3),
        lambda: nn.InstanceNorm2d(3, affine=True),
        nn.ReLU,
        nn.Flatten,
        lambda: nn.Linear(48, 3),
    ),
    "instance norm, tracking": image(
        lambda: nn.Conv2d(2, 3, 3),
        lambda: nn.InstanceNorm2d(3, track_running_stats=True),
        nn.ReLU,
        nn.Flatten,
        lambda: nn.Linear(48, 3),
    ),
    "local response norm": image(
        lambda: nn.Conv2d(2, 3, 3), lambda: nn.LocalResponseNorm(2), nn.Flatten, lambda: nn.Linear(48, 3)
    ),
    "embedding": tokens(Rows),
    "embedding with padding": tokens(lambda: Rows(padding_idx=0)),
    "embedding, sparse": tokens(lambda: Rows(sparse=True)),
    "embedding bag, mean": tokens(lambda: Bags("mean")),
    "embedding bag, sum": tokens(lambda: Bags("sum")),
    "embedding bag, max": tokens(lambda: Bags("max")),
    "RNN": sequence(lambda: nn.RNN(4, 4, batch_first=True)),
    "LSTM": sequence(lambda: nn.LSTM(4, 4, batch_first=True)),
    "LSTM, two ways": sequence(lambda: nn.LSTM(4, 3, num_layers=2, bidirectional=True, batch_first=True), 6),
    "LSTM, projected": sequence(lambda: nn.LSTM(4, 5, proj_size=4, batch_first=True)),
    "GRU": sequence(lambda: nn.GRU(4, 4, batch_first=True)),
    "scaled dot-product attention": sequence(DotProduct),
    "causal attention": sequence(lambda: DotProduct(causal=True)),
    "multihead attention": sequence(SelfAttention),
    "multihead attention without weights": sequence(lambda: SelfAttention(need_weights=False)),
    "transformer encoder layer": sequence(lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)),
    "transformer, norm first": sequence(
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, norm_first=True, activation="gelu"),
            2,
            enable_nested_tensor=False,
        )
    ),
    "weight norm": parametrized(parametrizations.weight_norm),
    "weight norm, legacy": parametrized(legacy_weight_norm),
    "spectral norm": parametrized(parametrizations.spectral_norm),
    "spectral norm, legacy": parametrized(nn.utils.spectral_norm),
    "orthogonal": parametrized(lambda layer: parametrizations.orthogonal(layer, orthogonal_map="cayley")),
    "checkpointing": lambda: classifier(lambda: Checkpointed(False, 1)),
    "torch.compile": lambda: classifier(lambda: torch.compile(Applied(nn.Tanh()), backend="aot_eager")),
    "torch.compile inside": lambda: classifier(compiled),
    "tied weights": tokens(Tied),
    "frozen base with a low-rank update": lambda: classifier(LowRank),
    "unused parameters": lambda: classifier(Unused),
    "ensemble and empty parameter": lambda: classifier(Ensemble),
    "custom function": between(Sine.apply),
    "custom function, detached context": between(SineDetached.apply),
    "custom function, once differentiable": between(SineOnce.apply),
    "stopped branch of frozen weights": lambda: classifier(StoppedTarget),
    "buffer written to": lambda: classifier(Moving),
    "buffer that counts": lambda: classifier(Counting),
    "drawing in vain": between(DrawsInVain),
    "Fourier filter": lambda: classifier(Spectral),
    "cdist": lambda: classifier(Distances),
    "cdist, p = 1": lambda: classifier(lambda: Distances(1.0)),
    "grid sampling": lambda: classifier(Warp),
    "hard routing": lambda: classifier(Experts),
    "cross-entropy, weighted and smoothed": lambda: classifier(
        lambda: nn.Linear(4, 3),
        loss=nn.CrossEntropyLoss(
            weight=torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64), label_smoothing=0.1
        ),
    ),
    "MSE": regression(nn.MSELoss()),
    "Huber": regression(nn.HuberLoss(delta=0.5)),
    "L1": regression(nn.L1Loss()),
    "smooth L1, summed": regression(nn.SmoothL1Loss(reduction="sum")),
    "binary cross-entropy": regression(nn.BCEWithLogitsLoss(), target=lambda: integers(2, N, 3).double()),
    "Kullback–Leibler": regression(
        lambda m, b: functional.kl_div(m(b[0]).log_softmax(-1), b[1].softmax(-1), reduction="batchmean")
    ),
    "multi-margin": lambda: classifier(lambda: Applied(nn.Tanh()), loss=nn.MultiMarginLoss(p=2)),
    "multi-label margin": regression(
        nn.MultiLabelSoftMarginLoss(), target=lambda: integers(2, N, 3).double()
    ),
    "CTC": ctc,
    "Gaussian likelihood": regression(gaussian_likelihood, 4),
    "triplet margin": regression(triplet),
    "contrast over the batch": regression(contrast),
    "physics-informed": regression(physics),
}
REFUSED = {
    "reentrant checkpointing over the inputs": (
        lambda: classifier(lambda: Checkpointed(True, 0)),
        "not the derivative of its loss.*Checkpointed",
    ),
    "reentrant checkpointing inside": (lambda: classifier(lambda: Checkpointed(True, 1)), "reentrant"),
    "custom function, wrong": (between(SineWrong.apply), "not the derivative.*Applied"),
    "custom function, wrong by 1 %": (between(SineSlightlyWrong.apply), "not the derivative"),
    "straight-through rounding": (between(Straight.apply), "straight-through"),
    "detach() in the forward pass": (lambda: classifier(StopHalf), "StopHalf.*detach"),
    "detach() of everything before": (lambda: classifier(Numpy), "not the derivative.*Numpy"),
    "detach() in the loss": (regression(stopped_loss), "in the loss itself"),
    "noise when evaluating": (between(Noise), r"'function' \(Noise\).*random numbers.*randn_like"),
    "dropout that never stops": (between(AlwaysDrops), r"'function' \(AlwaysDrops\)"),
    "RReLU that never stops": (between(AlwaysRReLU), r"'function' \(AlwaysRReLU\)"),
    "a layer left out now and then": (between(LayerDrop), r"'function' \(LayerDrop\)"),
    "state outside the model": (lambda: classifier(Outside), "state that changes between calls"),
    "embedding with a maximal norm": (
        tokens(lambda: Rows(max_norm=1.0)),
        r"writes to parameters.*rows\.weight.*max_norm",
    ),
    "orthogonal by reflections": (
        parametrized(parametrizations.orthogonal),
        r"jumps.*'0\.parametrizations.*_Orth",
    ),
    "complex parameters": (lambda: classifier(Complex), "complex"),
}
