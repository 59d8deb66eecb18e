"""The peer of `bench_dino.py`: DINO as the `lightly` package does it, in PyTorch.

Started by `bench_dino.py --peer` with a JSON specification as its only argument; answers one JSON
line for every command line on its standard input. Needs torch, torchvision, timm and lightly.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import warnings

import numpy as np

warnings.filterwarnings("ignore")
import torch  # noqa: E402

try:
  import torchvision  # noqa: F401
except (ImportError, RuntimeError) as error:
  sys.exit(
    f"import torchvision fails ({error}); torch and torchvision must be builds of one kind: "
    "pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu (or cu126)"
  )
import timm  # noqa: E402
from lightly.loss import DINOLoss  # noqa: E402
from lightly.models.modules import DINOProjectionHead  # noqa: E402
from lightly.models.utils import deactivate_requires_grad, update_momentum  # noqa: E402
from lightly.transforms.dino_transform import DINOTransform  # noqa: E402
from PIL import Image  # noqa: E402

MODELS = {"Ti": "vit_tiny", "S": "vit_small", "B": "vit_base", "L": "vit_large"}


class Gray(torch.utils.data.Dataset):
  """Decoded gray images in memory, through lightly's own DINO transform."""

  def __init__(self, spec):
    self.pixels = np.load(spec["images"], mmap_mode="r")
    self.transform = DINOTransform(
      global_crop_size=224,
      local_crop_size=96,
      n_local_views=spec["local_crops"],
      normalize={"mean": [0.5], "std": [0.25]},
    )

  def __len__(self):
    return len(self.pixels)

  def __getitem__(self, index):
    return self.transform(Image.fromarray(np.asarray(self.pixels[index, :, :, 0])))


class Peer:
  """Student, teacher, optimiser and one training step."""

  def __init__(self, spec):
    self.spec, torch_device = spec, "cuda" if torch.cuda.is_available() else "cpu"
    self.device = torch.device(torch_device)
    torch.manual_seed(0)
    name = f"{MODELS[spec['variant']]}_patch{spec['patch_size']}_224"

    def model(drop_path):
      vit = timm.create_model(
        name, num_classes=0, in_chans=1, dynamic_img_size=True, drop_path_rate=drop_path
      )
      head = DINOProjectionHead(
        vit.num_features,
        2048,
        256,
        spec["prototypes"],
        batch_norm=False,
        freeze_last_layer=1,
        norm_last_layer=True,
      )
      return torch.nn.Sequential(vit, head).to(self.device)

    self.student, self.teacher = model(0.1), model(0.0)
    self.teacher.load_state_dict(self.student.state_dict())
    deactivate_requires_grad(self.teacher)
    self.parameters = [p for p in self.student.parameters() if p.requires_grad]
    decayed = [p for p in self.parameters if p.ndim > 1]
    rest = [p for p in self.parameters if p.ndim <= 1]
    self.optimizer = torch.optim.AdamW(
      [{"params": decayed, "weight_decay": 0.04}, {"params": rest, "weight_decay": 0.0}],
      lr=1e-4,
      fused=self.device.type == "cuda",
    )
    self.criterion = DINOLoss(output_dim=spec["prototypes"]).to(self.device)
    compiled = self.device.type == "cuda" or spec["peer_compile"]
    wrap = torch.compile if compiled else (lambda f: f)
    self.run_student, self.run_teacher = wrap(self.student), wrap(self.teacher)
    self.compiled = compiled
    generator = torch.Generator().manual_seed(0)
    sizes = [224, 224] + [96] * spec["local_crops"]
    self.views = [
      torch.randn(spec["batch"], 1, s, s, generator=generator).to(self.device) for s in sizes
    ]
    self.loader = torch.utils.data.DataLoader(
      Gray(spec),
      batch_size=spec["batch"],
      shuffle=True,
      drop_last=True,
      num_workers=spec["workers"],
      persistent_workers=spec["workers"] > 0,
      pin_memory=self.device.type == "cuda",
    )
    self.batches = self._endless()

  def _endless(self):
    while True:
      for batch in self.loader:
        yield [v.to(self.device, non_blocking=True) for v in batch]

  def step(self, views):
    """One update; the crops of one size go through the network together, as in DINO's own code."""
    half = (
      torch.autocast("cuda", torch.bfloat16)
      if self.device.type == "cuda"
      else (contextlib.nullcontext())
    )
    large, small = torch.cat(views[:2]), views[2:]
    with half:
      with torch.no_grad():
        teacher = self.run_teacher(large)
      student = [self.run_student(large)]
      if small:
        student.append(self.run_student(torch.cat(small)))
    student = torch.cat(student).float().chunk(len(views))
    loss = self.criterion(list(teacher.float().chunk(2)), list(student), epoch=1)
    self.optimizer.zero_grad()
    loss.backward()
    for p in self.parameters:
      torch.nn.utils.clip_grad_norm_([p], 3.0)
    self.optimizer.step()
    update_momentum(self.student, self.teacher, 0.996)

  def measure(self, kind, steps):
    self.synchronize()
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
      self.step(self.views if kind == "bare" else next(self.batches))
    self.synchronize()
    return {
      "seconds": (time.perf_counter() - start) / steps,
      "cpu_seconds": (time.process_time() - cpu) / steps,
    }

  def peak(self):
    """GFLOP/s of a large square product: f32 on CPU, bf16 on GPU."""
    size, dtype = (8192, torch.bfloat16) if self.device.type == "cuda" else (2048, torch.float32)
    a = torch.ones(size, size, dtype=dtype, device=self.device)
    best = float("inf")
    for _ in range(6):
      self.synchronize()
      start = time.perf_counter()
      for _ in range(4):
        _ = a @ a
      self.synchronize()
      best = min(best, (time.perf_counter() - start) / 4)
    return {"gflops": 2 * size**3 / best / 1e9}

  def synchronize(self):
    if self.device.type == "cuda":
      torch.cuda.synchronize()


def main():
  spec = json.loads(sys.argv[1])
  if spec["threads"]:
    torch.set_num_threads(spec["threads"])
  torch.set_float32_matmul_precision("high")
  peer = Peer(spec)
  import lightly

  ready = {
    "versions": {
      "torch": torch.__version__,
      "lightly": lightly.__version__,
      "timm": timm.__version__,
    },
    "device": torch.cuda.get_device_name() if peer.device.type == "cuda" else "cpu",
    "compiled": peer.compiled,
    "threads": torch.get_num_threads(),
  }
  print(json.dumps(ready), flush=True)
  for line in sys.stdin:
    command = json.loads(line)
    kind = command.pop("kind")
    answer = peer.peak() if kind == "peak" else peer.measure(kind, **command)
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
  main()
