"""Vision transformers (Dosovitskiy et al. 2021, arXiv:2010.11929) for crops of mixed sizes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from cxrjax.core.errors import UserError, suggest
from cxrjax.core.target import CPU, Target
from cxrjax.models import attention, crops, layers, module, posembed, transformer
from cxrjax.models.attention import Kernel
from cxrjax.models.base import Encoder
from cxrjax.models.build import resolve
from cxrjax.models.features import Features, standardize

VARIANTS = {  # width, depth, heads
  "Nu": (64, 3, 2),
  "Mu": (128, 4, 2),
  "Ti": (192, 12, 3),
  "S": (384, 12, 6),
  "B": (768, 12, 12),
  "L": (1024, 24, 16),
}
_CHOICES = {
  "initial": ("normal", "xavier"),
  "positions": ("normal", "sincos"),
  "pool": ("cls", "mean"),
  "gelu": tuple(layers.GELUS),
}


class _Place(NamedTuple):
  """A point of the network whose values can be read, or added to."""

  kind: str  # "attn", "norm", "block" or "out"
  block: int  # from 0


@dataclasses.dataclass(frozen=True)
class Model(Encoder):
  """A vision transformer encoder.

  Attributes:
    variant: preset of width, depth and heads: "Nu" (64/3/2) and "Mu" (128/4/2) for CPUs, "Ti",
      "S", "B", "L".
    patch_size: pixels per side of a patch.
    image_size: pixels per side that the position embedding is learned for; resampled for others.
    channels: image channels; 1 for radiographs.
    standardize: bring every image to mean 0 and standard deviation 1 first, to remove exposure and
      contrast: they differ most between radiographs, and are what a network learns first.
    registers: extra tokens after the class token (Darcet et al. 2024, arXiv:2309.16588).
    drop_path: rate in the last block, rising linearly from 0 in the first (Huang et al. 2016,
      arXiv:1603.09382); used where `encode` is given keys.
    dtype: type of the activations; "auto" is bfloat16 on accelerators, float32 on CPU.
    attention: "plain", "cudnn" (NVIDIA GPUs of compute capability 8.0 and above) or "pallas"
      (TPUs), see `cxrjax.models.attention.Kernel`; "auto" is the target's, plain in float32.
    initial: kernel initializer: "normal", N(0, 0.02) as in DINO, or "xavier" (MAE, big_vision),
      without which a network under 200 wide hardly learns in its first thousand steps.
    positions: initial position embedding: "normal", N(0, 0.02), or "sincos", sines and cosines of
      row and column, which MAE and MoCo v3 keep fixed (a `config.optimizer.lr_scale` of 0 for
      `encoder/pos`).
    token_std: initial standard deviation of class token and registers; 1e-6 in MoCo v3 and DINOv2.
    interpolation: how positions are resampled for images of another size than `image_size`, one of
      `cxrjax.models.posembed.INTERPOLATIONS`: "dino", as DINO and DINOv2 do for their small crops,
      "torch", "timm" or "big_vision". Weights files are resampled as their own code does.
    mask_token: have a mask token, for `encode(mask=)`.
    layer_scale: initial value of the learned per-channel factors of the residual branches (DINOv2:
      1e-5); 0: no layer scale.
    drop_uniform: use the same drop path rate in all blocks (DINOv2).
    gelu: "exact", or "tanh", the approximation that networks pretrained by big_vision use.
    pool: source of `Features.cls`: "cls", the class token, or "mean", the mean of the patch
      features, where no loss trains the class token to summarize an image (MAE's `global_pool`).
    remat: recompute every block in the backward pass, to save memory.
    width, depth, heads: override the variant.
    target: the devices that it will run on, set by the program.
  """

  variant: str = "S"
  patch_size: int = 16
  image_size: int = 224
  channels: int = 1
  standardize: bool = False
  registers: int = 0
  drop_path: float = 0.1
  dtype: str = "auto"
  attention: str = "auto"
  initial: str = "normal"
  positions: str = "normal"
  token_std: float = 0.02
  interpolation: str = "dino"
  mask_token: bool = False
  pool: str = "cls"
  layer_scale: float = 0.0
  drop_uniform: bool = False
  gelu: str = "exact"
  remat: bool = False
  width: int | None = None
  depth: int | None = None
  heads: int | None = None
  target: Target = CPU

  drops_patches = True
  masks_patches = True
  takes_target = True

  def __post_init__(self):
    resolve(self)
    if self.variant not in VARIANTS:
      raise UserError(
        f"config.model.variant={self.variant!r} is not known{suggest(self.variant, VARIANTS)}"
      )
    width, depth, heads = self._dims
    if width % heads:
      raise UserError(f"config.model.width={width} does not divide into config.model.heads={heads}")
    if not 1 <= depth <= layers.MAX_DEPTH:
      raise UserError(f"config.model.depth={depth} must be from 1 to {layers.MAX_DEPTH}")
    if self.image_size % self.patch_size:
      raise UserError(
        f"config.model.image_size={self.image_size} is not a multiple of "
        f"config.model.patch_size={self.patch_size}"
      )
    for name, valid in _CHOICES.items():
      value = getattr(self, name)
      if value not in valid:
        raise UserError(
          f"config.model.{name}={value!r} is not known; valid: {', '.join(map(repr, valid))}"
        )
    if self.interpolation not in posembed.INTERPOLATIONS:
      raise UserError(
        f"config.model.interpolation={self.interpolation!r} is not known"
        f"{suggest(self.interpolation, posembed.INTERPOLATIONS)}"
      )
    if self.token_std < 0:
      raise UserError(f"config.model.token_std={self.token_std} must be at least 0")
    if self.layer_scale < 0:
      raise UserError(f"config.model.layer_scale={self.layer_scale} must be at least 0")
    if self.positions == "sincos" and width % 4:
      raise UserError(
        f"config.model.width={width} must be a multiple of 4 for config.model.positions='sincos'"
      )
    if not 0 <= self.drop_path < 1:
      raise UserError(f"config.model.drop_path={self.drop_path} must be in [0, 1)")

  @property
  def _dims(self) -> tuple[int, int, int]:
    width, depth, heads = VARIANTS[self.variant]
    return self.width or width, self.depth or depth, self.heads or heads

  @property
  def kernel(self) -> Kernel:
    """The attention implementation."""
    return Kernel(self.attention, self.target.mesh)

  @property
  def features(self) -> int:
    """Length d of the feature vectors."""
    return self._dims[0]

  @property
  def blocks(self) -> int:
    """Number of transformer blocks."""
    return self._dims[1]

  @property
  def layer_names(self) -> tuple[str, ...]:
    """Regular expressions for the parameters of each layer, input first.

    The last norm belongs to the head.
    """
    embedding = "(patch|cls|pos|registers|mask_token)(/|$)"
    return (embedding, *(f"blocks/{i}/" for i in range(self.blocks)))

  @property
  def attention_heads(self) -> int:
    """Number of attention heads of every block."""
    return self._dims[2]

  @functools.cached_property
  def _net(self) -> module.Net:
    # A copy, without what has been set on this encoder beside its fields, as the net is cached.
    return module.Net.of(_VisionTransformer, config=dataclasses.replace(self))

  def init(self, key: jax.Array) -> module.Params:
    """Fresh parameters, initialized as in DINO and timm: N(0, 0.02^2), biases 0."""
    return self._net.init(key)

  def encode(
    self,
    params: module.Params,
    x: Float[Array, "b h w c"] | Sequence[Float[Array, "_ _ _ _"]],
    *,
    keys: Any = None,
    intermediates: tuple[str, ...] = (),
    patches: bool = True,
    train: bool = False,
    keep: Int[Array, "b m"] | Sequence[Any] | None = None,
    mask: Bool[Array, "b n"] | Sequence[Any] | None = None,
    add_at: Mapping[str, Float[Array, "b n d"]] | None = None,
  ) -> Any:
    """Encodes a batch, or several batches of different image sizes at once.

    Args:
      params: from `init`.
      x: normalized images, f32[b h w c]; or a sequence of such batches, each of its own size.
      keys: one PRNG key per image ([b], or a sequence like `x`) for drop path; None: no drop path.
        Only the image's own key counts, so results do not depend on how a batch is split.
      intermediates: additional outputs of block I (from 0, negative from the end) over class
        token, registers and patches: "attn:I", its attention f32[b heads n n] ("attn": that of the
        last block); "norm:I", the tokens [b n d] that its attention reads, after a layer norm;
        "block:I", the tokens after it; and "out", the tokens after the last layer norm, f32.
      patches: False omits the patch features. Under `jit` leaving this at True costs nothing:
        unused outputs, most of the last block, are not computed.
      train: ignored; for networks with batch norm.
      keep: indices (row by row, from 0) of the patches of each image to encode, i32[b m]; the
        others are dropped before the first block and cost nothing. `Features.patches`, and
        intermediates, hold those kept, in this order. For a sequence `x` a sequence, None to keep
        all.
      mask: patches whose embedding is replaced by the mask token before positions are added,
        bool[b n] over all patches; a sequence like `keep`, None to replace nothing.
      add_at: offsets to add to the intermediates "norm:I", "block:I" and "out" of a single batch.
        The gradient with respect to a zero offset is the gradient there.

    Returns:
      `Features`, or a tuple of them where `x` is a sequence.

    Raises:
      UserError: an image size that is not a multiple of the patch size, an unknown intermediate,
        or a mask without `mask_token`.
      ValueError: `add_at` for several batches, or for attention.
    """
    del train
    is_sequence = isinstance(x, Sequence)
    shifts = {self._place(name): value for name, value in (add_at or {}).items()}
    if shifts and (is_sequence or any(place.kind == "attn" for place in shifts)):
      raise ValueError(f"add_at={tuple(add_at or ())} is of one batch, at norm:I, block:I and out")
    places = {name: self._place(name) for name in intermediates}
    batches = crops.by_size(x, keys, keep, mask)
    for batch in batches:
      self._check(batch)
    net = self._net.bind(params)
    features = tuple(net(batch, places, shifts, patches=patches) for batch in batches)
    return features if is_sequence else features[0]

  def _check(self, batch: crops.Crops) -> None:
    if batch.mask is not None and not self.mask_token:
      raise UserError("masked patches need config.model.mask_token=True")
    height, width, channels = batch.images.shape[1:]
    if height % self.patch_size or width % self.patch_size:
      raise UserError(
        f"images of {height}x{width} pixels do not divide into patches of "
        f"config.model.patch_size={self.patch_size}"
      )
    if channels != self.channels:
      raise UserError(f"images have {channels} channels, config.model.channels={self.channels}")

  def _place(self, tap: str) -> _Place:
    """Parses the name of an intermediate."""
    depth = self.blocks
    if tap in ("attn", "out"):  # of the last block, and after it
      return _Place(tap, depth - 1)
    kind, _, index = tap.partition(":")
    if (
      kind in ("attn", "norm", "block")
      and index.removeprefix("-").isdigit()
      and -depth <= int(index) < depth
    ):
      return _Place(kind, int(index) % depth)
    raise UserError(
      f"tap {tap!r} is not known; valid: 'attn', 'out', 'attn:I', 'norm:I', 'block:I' with I "
      f"from {-depth} to {depth - 1}"
    )


class _VisionTransformer(nnx.Module):
  """The network: patches to tokens, blocks, the last norm."""

  def __init__(self, config: Model, rngs: nnx.Rngs):
    width, init = config.features, config.initial
    grid = config.image_size // config.patch_size
    # DINO and timm keep torch's default initialization of the patch projection (a convolution).
    self.patch = layers.Linear(
      config.patch_size**2 * config.channels,
      width,
      init="torch" if init == "normal" else init,
      rngs=rngs,
    )
    token = nnx.initializers.normal(config.token_std)
    self.cls = nnx.Param(token(rngs.params(), (1, width), jnp.float32))
    self.registers = (
      nnx.Param(token(rngs.params(), (config.registers, width), jnp.float32))
      if config.registers
      else None
    )
    pos = layers.normal_init(rngs.params(), (1 + grid * grid, width), jnp.float32)
    if config.positions == "sincos":
      pos = jnp.concatenate([jnp.zeros((1, width)), posembed.sincos((grid, grid), width)])
    self.pos = nnx.Param(pos)
    # 0 as in iBOT and DINOv2: a masked patch starts as its position alone.
    self.mask_token = nnx.Param(jnp.zeros((1, width), jnp.float32)) if config.mask_token else None
    self.blocks = nnx.List(
      [
        transformer.Block(
          width, config.attention_heads, init, rngs, config.layer_scale, config.gelu, config.kernel
        )
        for _ in range(config.blocks)
      ]
    )
    self.norm = layers.LayerNorm(width)
    self.config = config

  def __call__(
    self,
    batch: crops.Crops,
    places: Mapping[str, _Place],
    shifts: Mapping[_Place, Array],
    *,
    patches: bool,
  ) -> Features:
    """Features of one batch, whose images are of one size.

    Args:
      batch: the images, and what belongs to each.
      places: the intermediates to return, by name.
      shifts: values to add.
      patches: whether to return the patch features.
    """
    values: dict[_Place, Array] = {}
    requested = set(places.values())
    x = self._embed(batch)
    scales = self._drop_path(batch.keys)
    last = len(self.blocks) - 1
    for i, block in enumerate(self.blocks):
      scale = None if scales is None else scales[i]
      norm, attn, after = (_Place(kind, i) for kind in ("norm", "attn", "block"))
      shift = shifts.get(norm)
      if norm in requested:
        values[norm] = block.read(x, shift)
      if attn in requested:
        values[attn] = attention.probabilities(block.qkv(x, shift), block.attn.heads)
      if i == last:
        # The class token alone needs one row of the last block. Where the patches below are unused,
        # the compiler drops them; where they are used, these rows cost 1 % more.
        cls = self._run(transformer.Block.cls_only, block, x, scale, shift)
      x = self._run(transformer.Block.__call__, block, x, scale, shift)
      if after in shifts:
        x = x + shifts[after].astype(x.dtype)
        if i == last:
          cls = cls + shifts[after][:, 0].astype(cls.dtype)
      if after in requested:
        values[after] = x
    cls = self.norm(cls).astype(jnp.float32)
    x = self.norm(x).astype(jnp.float32)
    out = _Place("out", last)
    if out in shifts:
      x = x + shifts[out]
      cls = cls + shifts[out][:, 0]
    values[out] = x
    patch_tokens = x[:, 1 + self.config.registers :]
    if self.config.pool == "mean":
      cls = patch_tokens.mean(1)
    # Under jit, patches and class tokens that are not returned are not computed.
    outputs = {name: values[place] for name, place in places.items()}
    return Features(cls, patch_tokens if patches else None, outputs)

  def _run(self, function, block, x, scale, shift):
    if self.config.remat:
      function = nnx.remat(function)
    return function(block, x, scale, shift)

  def _embed(self, batch: crops.Crops) -> Float[Array, "b n d"]:
    """Class token, registers and (kept) patches."""
    config, dtype = self.config, self.config.dtype
    images, keep, mask = batch.images, batch.keep, batch.mask
    if config.standardize:
      images = standardize(images)
    rows, cols = config.grid(images.shape[1:])
    x = rearrange(
      images.astype(dtype),
      "b (rows i) (cols j) c -> b (rows cols) (i j c)",
      i=config.patch_size,
      j=config.patch_size,
    )
    if keep is not None:  # pixels need no gradient, which would have to be scattered back
      x = jnp.take_along_axis(x, keep[..., None], axis=1)
    pos = self.pos[...]
    x = self.patch(x)
    if mask is not None:
      assert self.mask_token is not None  # `Model.encode` checks
      mask = mask if keep is None else jnp.take_along_axis(mask, keep, axis=1)
      x = jnp.where(mask[..., None], self.mask_token[...].astype(dtype), x)
    learned = config.grid((config.image_size,) * 2)
    grid_pos = posembed.resample(pos[1:], learned, (rows, cols), config.interpolation)
    grid_pos = grid_pos.astype(dtype)
    if keep is not None:
      # A product, not a lookup: its gradient sums over images in the same order on every backend.
      grid_pos = jax.nn.one_hot(keep, rows * cols, dtype=dtype) @ grid_pos
    x = x + grid_pos
    prefix = self.cls[...] + pos[:1]
    if self.registers is not None:
      prefix = jnp.concatenate([prefix, self.registers[...]])
    prefix = jnp.broadcast_to(prefix.astype(dtype), (images.shape[0], *prefix.shape))
    return jnp.concatenate([prefix, x], axis=1)

  def _drop_path(self, keys: Any) -> Float[Array, "depth b 2"] | None:
    """Factors, 0 or 1/(1 - rate), of both branches of every block and image."""
    rate, depth = self.config.drop_path, self.config.blocks
    if keys is None or not rate:
      return None
    rates = jnp.linspace(rate if self.config.drop_uniform else 0.0, rate, depth)

    def draw(key):
      chance = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (2,)))(
        jnp.arange(depth)
      )
      return (chance >= rates[:, None]) / (1.0 - rates[:, None])

    return jax.vmap(draw, out_axes=1)(keys).astype(self.config.dtype)
