"""The peer of `bench_methods.py`: the methods as the `lightly` package has them, in PyTorch.

Started by `bench_methods.py --peer-python=...` with a JSON specification as its only argument;
answers one JSON line for every command line on its standard input. Each method is put together
from lightly's heads and losses around a timm ViT, with the sizes of the papers, as ours are.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import warnings

warnings.filterwarnings("ignore")
import lightly  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
from lightly import loss as losses  # noqa: E402
from lightly.models import modules as heads  # noqa: E402
from lightly.models import utils  # noqa: E402
from sides import serve  # noqa: E402

MODELS = {"Ti": "vit_tiny", "S": "vit_small", "B": "vit_base", "L": "vit_large"}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def backbone(spec):
  return timm.create_model(
    f"{MODELS[spec['model']]}_patch{spec['patch_size']}_224",
    num_classes=0,
    in_chans=1,
    img_size=spec["size"],
    dynamic_img_size=True,
  )


class Net(torch.nn.Module):
  """A backbone and heads by name."""

  def __init__(self, body, **parts):
    super().__init__()
    self.body = body
    for name, part in parts.items():
      setattr(self, name, part)

  def forward(self, x):
    return self.head(self.body(x))


class Method:
  """A network, its teacher where there is one, views, and `loss`."""

  large, small = 2, 0

  def __init__(self, spec):
    self.spec = spec
    self.net = self.build(backbone(spec)).to(DEVICE)
    self.teacher = None
    if self.has_teacher:  # weight norm cannot be copied
      self.teacher = self.build(backbone(spec)).to(DEVICE)
      self.teacher.load_state_dict(self.net.state_dict())
      utils.deactivate_requires_grad(self.teacher)
    sizes = [spec["size"]] * self.large + [96 * spec["size"] // 224] * self.small
    self.views = [torch.randn(spec["batch"], 1, s, s, device=DEVICE) for s in sizes]

  has_teacher = False

  def step(self):
    self.net.zero_grad()
    half = (
      torch.autocast("cuda", torch.bfloat16)
      if DEVICE.type == "cuda"
      else (contextlib.nullcontext())
    )
    with half:
      loss = self.loss()
    loss.backward()


class SimCLR(Method):
  def build(self, body):
    self.criterion = losses.NTXentLoss(temperature=0.1)
    return Net(body, head=heads.SimCLRProjectionHead(body.num_features, 2048, 128))

  def loss(self):
    return self.criterion(*self.net(torch.cat(self.views)).chunk(2))


class MoCo2(Method):
  has_teacher = True

  def build(self, body):
    self.criterion = losses.NTXentLoss(temperature=0.2, memory_bank_size=(65536, 128)).to(DEVICE)
    return Net(body, head=heads.MoCoProjectionHead(body.num_features, 2048, 128))

  def loss(self):
    with torch.no_grad():
      keys = self.teacher(self.views[1])
    return self.criterion(self.net(self.views[0]), keys)


class Byol(Method):
  has_teacher = True

  def build(self, body):
    self.criterion = losses.NegativeCosineSimilarity()
    return Net(
      body,
      head=heads.BYOLProjectionHead(body.num_features, 4096, 256),
      predictor=heads.BYOLPredictionHead(256, 4096, 256),
    )

  def loss(self):
    both = torch.cat(self.views)
    with torch.no_grad():
      known = self.teacher(both).chunk(2)
    found = self.net.predictor(self.net(both)).chunk(2)
    return self.criterion(found[0], known[1]) + self.criterion(found[1], known[0])


class SimSiam(Method):
  def build(self, body):
    self.criterion = losses.NegativeCosineSimilarity()
    return Net(
      body,
      head=heads.SimSiamProjectionHead(body.num_features, 2048, 2048),
      predictor=heads.SimSiamPredictionHead(2048, 512, 2048),
    )

  def loss(self):
    z = self.net(torch.cat(self.views))
    p = self.net.predictor(z).chunk(2)
    z = z.detach().chunk(2)
    return 0.5 * (self.criterion(p[0], z[1]) + self.criterion(p[1], z[0]))


class Dino(Method):
  small, has_teacher = 8, True

  def build(self, body):
    self.criterion = losses.DINOLoss(output_dim=65536).to(DEVICE)
    head = heads.DINOProjectionHead(body.num_features, 2048, 256, 65536, batch_norm=False)
    return Net(body, head=head)

  def loss(self):
    large = torch.cat(self.views[:2])
    with torch.no_grad():
      known = self.teacher(large).chunk(2)
    # Crops of one size together, as in DINO's own code and faster than one by one.
    found = torch.cat([self.net(large), self.net(torch.cat(self.views[2:]))])
    return self.criterion(list(known), list(found.float().chunk(len(self.views))), epoch=1)


class DinoV2(Method):
  small, has_teacher = 8, True

  def build(self, body):
    self.of_class = losses.DINOLoss(output_dim=65536).to(DEVICE)
    self.of_patch = losses.IBOTPatchLoss(output_dim=65536).to(DEVICE)
    self.koleo = losses.KoLeoLoss()
    head = heads.DINOProjectionHead(
      body.num_features, 2048, 256, 65536, batch_norm=False, norm_last_layer=False
    )
    return Net(heads.MaskedVisionTransformerTIMM(vit=body), head=head)

  def loss(self):
    large, batch = torch.cat(self.views[:2]), self.spec["batch"]
    tokens = self.net.body.sequence_length - 1
    # As ours: half of the images, and there from 10 to 50 % of the patches, 30 % on average.
    mask = torch.zeros(2 * batch, tokens + 1, dtype=torch.bool, device=DEVICE)
    mask[::2, 1:] = torch.rand(batch, tokens, device=DEVICE) < 0.3
    with torch.no_grad():
      known = self.teacher.body.encode(large)
      known_cls = self.teacher.head(known[:, 0]).chunk(2)
      known_patch = self.teacher.head(known[mask])
    seen = self.net.body.encode(large, mask=mask)
    small = self.net.body.encode(torch.cat(self.views[2:]))[:, 0]
    found = self.net.head(torch.cat([seen[:, 0], small]))
    patch = self.of_patch(
      teacher_out=known_patch.float(),
      student_out=self.net.head(seen[mask]).float(),
      mask=mask[:, 1:].reshape(2 * batch, *2 * (int(tokens**0.5),)),
    )
    near = sum(self.koleo(part) for part in seen[:, 0].float().chunk(2))
    return (
      self.of_class(list(known_cls), list(found.float().chunk(len(self.views))), epoch=1)
      + patch
      + 0.1 * near
    )


class Mae(Method):
  large = 1

  def build(self, body):
    size, patch = self.spec["size"], self.spec["patch_size"]
    decoder = heads.MAEDecoderTIMM(
      num_patches=(size // patch) ** 2,
      patch_size=patch,
      in_chans=1,
      embed_dim=body.num_features,
      decoder_embed_dim=512,
      decoder_depth=8,
      decoder_num_heads=16,
    )
    return Net(heads.MaskedVisionTransformerTIMM(vit=body), decoder=decoder)

  def loss(self):
    x, body, decoder = self.views[0], self.net.body, self.net.decoder
    shape = len(x), body.sequence_length
    keep, masked = utils.random_token_mask(size=shape, mask_ratio=0.75, device=DEVICE)
    tokens = decoder.embed(body.encode(x, idx_keep=keep))
    whole = utils.repeat_token(decoder.mask_token, shape)
    whole = utils.set_at_index(whole, keep, tokens.type_as(whole))
    found = decoder.predict(utils.get_at_index(decoder.decode(whole), masked))
    want = utils.get_at_index(utils.patchify(x, self.spec["patch_size"]), masked - 1)
    want = (want - want.mean(-1, keepdim=True)) / (want.var(-1, keepdim=True) + 1e-6).sqrt()
    return torch.nn.functional.mse_loss(found.float(), want)


METHODS = {
  "mae": Mae,
  "dino": Dino,
  "dinov2": DinoV2,
  "simclr": SimCLR,
  "moco2": MoCo2,
  "byol": Byol,
  "simsiam": SimSiam,
}


def synchronize():
  if DEVICE.type == "cuda":
    torch.cuda.synchronize()


def main():
  spec = json.loads(sys.argv[1])
  torch.manual_seed(0)
  torch.set_float32_matmul_precision("high")
  sides = {}

  def answer(kind, name, steps=1):
    if kind == "make":
      sides[name] = METHODS[name](spec)
      sides[name].step()
      return {}
    synchronize()
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
      sides[name].step()
    synchronize()
    return {
      "seconds": (time.perf_counter() - start) / steps,
      "cpu_seconds": (time.process_time() - cpu) / steps,
    }

  serve(
    {
      "versions": {
        "torch": torch.__version__,
        "lightly": lightly.__version__,
        "timm": timm.__version__,
      },
      "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu",
      "threads": torch.get_num_threads(),
    },
    answer,
  )


if __name__ == "__main__":
  main()
