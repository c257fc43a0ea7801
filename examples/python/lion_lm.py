"""Trains the small transformer of integrations/char-lm with Lion8bit of bitsandbytes, on the CPU.

    python lion_lm.py FOLDER [OUT]

FOLDER is what `study --export FOLDER` wrote: the text, and per seed the initial parameters and the minibatches. OUT
gets one JSON line per seed, with the validation losses that docs/quality/runs.jsonl has for lion. By default it is
FOLDER/bitsandbytes.jsonl. Equal inputs give equal results on the same platform, as one thread is used.
"""
import importlib.metadata
import json
import math
import sys
from pathlib import Path

try:
    import bitsandbytes as bnb
    import torch
    import torch.nn.functional as F
    from safetensors import SafetensorError
    from safetensors.torch import load_file
except ImportError as error:
    sys.exit(f"lion_lm.py needs the packages torch, bitsandbytes, safetensors and numpy: {error}")

# The values of integrations/study/src/train.rs and of `validation_losses` in integrations/char-lm.
POINTS, WINDOWS, EVALUATED = 12, (96, 512), 32
DIVERGED = 1e9  # stands for a loss that is not finite, as JSON has no NaN

class Transformer:
    def __init__(self, settings, params):
        self.layers, self.heads = settings["layers"], settings["heads"]
        self.context, self.width = settings["context"], settings["width"]
        self.params = {name: torch.nn.Parameter(tensor) for name, tensor in params.items()}
        self.later = torch.ones(self.context, self.context, dtype=torch.bool).triu(1)

    def normalize(self, x, name):
        return F.rms_norm(x, (self.width,), self.params[name], 1e-5)

    def attend(self, x, layer):
        sequences, size = len(x), self.width // self.heads
        split = lambda part: part.reshape(sequences, self.context, self.heads, size).transpose(1, 2)
        queries, keys, values = map(split, (x @ self.params[f"{layer}.qkv"]).split(self.width, dim=2))
        scores = (queries * size**-0.5) @ keys.transpose(2, 3)
        mixed = scores.masked_fill(self.later, -math.inf).softmax(3) @ values
        return mixed.transpose(1, 2).reshape(x.shape) @ self.params[f"{layer}.projection"]

    def losses(self, tokens, following):
        """Returns the cross-entropy of each token that follows, in nats. A weight has shape [inputs, outputs]."""
        x = F.embedding(tokens, self.params["token"]) + self.params["position"]
        for layer in (f"layer{i}" for i in range(self.layers)):
            x = x + self.attend(self.normalize(x, f"{layer}.attention_norm"), layer)
            hidden = self.normalize(x, f"{layer}.network_norm") @ self.params[f"{layer}.up"]
            x = x + hidden.relu() @ self.params[f"{layer}.down"]
        logits = self.normalize(x, "norm") @ self.params["head"]
        return F.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="none")

def windows(text, starts, length):
    """Returns the tokens of windows and those that follow."""
    places = starts[:, None] + torch.arange(length)
    return text[places], text[places + 1]

@torch.no_grad()
def validation_loss(model, text, count):
    last = len(text) - model.context - 1
    starts = torch.tensor([i * last // count for i in range(count)])
    parts = [model.losses(*windows(text, part, model.context)) for part in starts.split(EVALUATED)]
    loss = torch.cat(parts).double().mean().item()
    return round(loss, 5) if math.isfinite(loss) else DIVERGED

def train(settings, text, tensors):
    """Returns the curve of the validation loss, and the loss at the end."""
    starts = tensors["starts"].long()
    model = Transformer(settings, {name: t for name, t in tensors.items() if name != "starts"})
    groups = [{"params": [], "weight_decay": decay} for decay in (settings["decay"], 0.0)]
    for name, p in model.params.items():
        groups[name.endswith("norm")]["params"].append(p)
    # A state has 8 bits if it has at least `min_8bit_size` elements, as in lion.
    optimizer = bnb.optim.Lion8bit(groups, lr=settings["lrs"][0], betas=(0.9, 0.99), min_8bit_size=4096)
    steps, curve = len(settings["lrs"]), []
    for step, lr in enumerate(settings["lrs"]):
        if step % max(1, math.ceil(steps / POINTS)) == 0:
            curve.append((step, validation_loss(model, text["validation"], WINDOWS[0])))
        optimizer.zero_grad()
        model.losses(*windows(text["training"], starts[step], model.context)).mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    curve.append((steps, validation_loss(model, text["validation"], WINDOWS[0])))
    return curve, validation_loss(model, text["validation"], WINDOWS[1])

def main(folder, out=None):
    folder = Path(folder)
    try:
        settings = json.loads((folder / "run.json").read_text())
        text = {name: t.long() for name, t in load_file(folder / "text.safetensors").items()}
        runs = {seed: load_file(folder / f"seed{seed}.safetensors") for seed in settings["seeds"]}
        shared = {"text": settings["text"], "lr": max(settings["lrs"]), "decay": settings["decay"]}
    except KeyError as error:
        sys.exit(f"{folder / 'run.json'} has no {error}, which `study --export` writes")
    except (OSError, ValueError, SafetensorError) as error:
        sys.exit(f"lion_lm.py cannot read the files of `study --export` in {folder}: {error}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "bitsandbytes")}
    out = Path(out or folder / "bitsandbytes.jsonl")
    try:
        with open(f"{out}.unfinished", "w") as lines:
            for seed, tensors in runs.items():
                curve, loss = train(settings, text, tensors)
                print(f"seed {seed}: validation loss {loss:.5f}", flush=True)
                line = {"seed": seed, **shared, "loss": loss, "curve": curve, "versions": versions}
                print(json.dumps(line, separators=(",", ":")), file=lines, flush=True)
        Path(f"{out}.unfinished").replace(out)
    except OSError as error:
        sys.exit(f"lion_lm.py cannot write the results: {error}")

if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python lion_lm.py FOLDER [OUT]")
    main(*sys.argv[1:])
