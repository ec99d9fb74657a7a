"""Training of a StyleGAN2 with adaptive discriminator augmentation.

Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data" (2006.06676), on top of
Karras et al. 2019, "Analyzing and Improving the Image Quality of StyleGAN" (1912.04958).
"""

import copy
import hashlib
import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from stylegan2.ada import AdaController
from stylegan2.augment import AugmentPipe
from stylegan2.checkpoint import (
    load_checkpoint,
    network_tensors,
    optimizer_tensors,
    restore_network,
    restore_optimizer,
    save_checkpoint,
)
from stylegan2.config import ResolvedOptions, TrainingOptions, resolve
from stylegan2.data import ImageStream
from stylegan2.ema import ema_beta, update_average
from stylegan2.errors import StyleGAN2Error
from stylegan2.history import Row, TickAverages, write_history
from stylegan2.interruption import deferred_interruption
from stylegan2.loss import StyleGAN2Loss
from stylegan2.network_folder import check_and_load, save_weights, write_config
from stylegan2.networks.discriminator import Discriminator
from stylegan2.networks.generator import Generator
from stylegan2.ops.allocation import keep_freed_memory
from stylegan2.ops.build import source_digest
from stylegan2.ops.selection import announce_implementation, describe_implementation, runs_compiled
from stylegan2.ops.toolchain import processor
from stylegan2.optimisation import lazy_adam, step_with_gradients, trainable
from stylegan2.precision import full_precision
from stylegan2.randomness import Stream, derive_seed
from stylegan2.snapshots import Snapshots
from stylegan2.training_lock import lock_training
from stylegan2.transfer import SourceNetworks, check_fit, load_source, network_kwargs

CHECKPOINT = "checkpoint.safetensors"

log = logging.getLogger(__name__)


def train(
    images: NDArray[np.uint8],
    options: TrainingOptions,
    *,
    seed: int,
    out_dir: Path,
    checkpoint_dir: Path | None = None,
    checkpoint_minutes: float = 5.0,
    device: torch.device | None = None,
    labels: NDArray[np.float32] | None = None,
    progress: bool = True,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Train a GAN, or go on with an interrupted training, and write the finished networks.

    On the CPU the result depends on images, options and seed alone, bit for bit, interrupted or not, as long
    as threads, operations, processor and PyTorch's version stay the same; others change last digits, which a
    training lets grow. A training that goes on with others logs a warning.

    Args:
        images: uint8 [N, H, W, C]: images of the size that `options` name, 1 or 3 channels.
        options: what and how long to train.
        seed: of everything random, ≥ 0.
        out_dir: receives generator.safetensors (moving average), generator_raw.safetensors (without
            averaging, to train on), discriminator.safetensors, config.json, history.csv and samples/ with
            grids of images; with `options.kid_images` also kid.csv and best/, the averaged generator of the
            lowest KID; with `options.keep_snapshots` snapshots/<images shown>/ with that of every snapshot.
        checkpoint_dir: where to keep and look for the state of the training; None = nowhere. The last state
            stays there: delete it when the result is safe, or go on from it with a larger kimg.
        checkpoint_minutes: time between checkpoints. Ctrl-C and SIGTERM also write one.
        device: where to compute; None = the CPU.
        labels: float32 [N, c_dim], used with `options.cond`.
        progress: show a progress bar.
        provenance: entries to add to config.json.

    Raises:
        StyleGAN2Error: for unusable images, a checkpoint or `init` of other options, diverged training, or
            when another process trains into one of the folders.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when the checkpoint is written.
    """
    if options.cond and labels is None:
        raise StyleGAN2Error("cond: the images have no labels; add them or leave cond out")
    if not options.cond:
        labels = None
    device = device or torch.device("cpu")
    source = None if options.init is None else SourceNetworks.load(options.init)
    resolved = resolve(options, source=None if source is None else source.architecture)
    check_fit(images, labels, options, resolved, source)
    with lock_training(out_dir, *([] if checkpoint_dir is None else [checkpoint_dir])):
        announce_implementation(device)
        if device.type == "cpu":
            keep_freed_memory()
        if resolved.num_fp16_res and device.type != "cuda":
            log.warning(
                "num_fp16_res: half precision needs CUDA; on %s everything computes in float32", device
            )
        with full_precision(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            trainer = Trainer(
                images,
                resolved,
                labels=labels,
                source=source,
                seed=seed,
                device=device,
                progress_dir=checkpoint_dir or out_dir,
                checkpoint=None if checkpoint_dir is None else checkpoint_dir / CHECKPOINT,
                checkpoint_seconds=60 * checkpoint_minutes,
            )
            trainer.run(progress)
            trainer.export(out_dir, provenance or {})


def images_to_show(options: ResolvedOptions) -> int:
    """Count the real images of a whole training: kimg, rounded up to whole batches."""
    return math.ceil(options.kimg * 1000 / options.batch) * options.batch


class Trainer:
    """The state of a training and the steps that move it on.

    Args:
        images: as in `train`.
        options: resolved options.
        labels: float32 [N, c_dim]; None without labels.
        source: networks to fine-tune from; None = start afresh.
        seed: of everything random.
        device: where to compute.
        progress_dir: receives history.csv and what the snapshots give while training goes on.
        checkpoint: file to keep the state in; None = nowhere.
        checkpoint_seconds: time between checkpoints.

    Attributes:
        images_seen: real images shown to the discriminator so far; everything random derives from it.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        options: ResolvedOptions,
        *,
        labels: NDArray[np.float32] | None = None,
        source: SourceNetworks | None = None,
        seed: int,
        device: torch.device,
        progress_dir: Path,
        checkpoint: Path | None = None,
        checkpoint_seconds: float = 300.0,
    ) -> None:
        self.options = options
        self.seed = seed
        self.device = device
        self.source = source
        self.progress_dir = progress_dir
        self.checkpoint = checkpoint
        self.checkpoint_seconds = checkpoint_seconds
        self.stream = ImageStream(images, options.mirror, seed, labels, options.subset)
        self.snapshots = Snapshots(
            self.stream,
            options,
            seed,
            device,
            progress_dir,
            None if checkpoint is None else checkpoint.parent / "features",
        )
        self.total_images = images_to_show(options)
        self.images_seen = 0
        self.tick = 0
        self.history: list[Row] = []
        self.averages = TickAverages()
        self._build_networks(images.shape[3], 0 if labels is None else labels.shape[1])
        self._build_augmentation()
        self._build_objectives()

    def _build_networks(self, channels: int, c_dim: int) -> None:
        torch.manual_seed(derive_seed(self.seed, Stream.INITIAL_WEIGHTS))
        generator_kwargs, discriminator_kwargs = network_kwargs(self.options, channels, c_dim, self.source)
        self.generator = Generator(**generator_kwargs)
        self.discriminator = Discriminator(**discriminator_kwargs)
        self.average = copy.deepcopy(self.generator)
        if self.source is not None:
            load_source(self.source, self.generator, self.average, self.discriminator)
        self.generator.to(self.device).train()
        self.discriminator.to(self.device).train()
        self.average.to(self.device).eval().requires_grad_(False)

    def _build_augmentation(self) -> None:
        options = self.options
        self.augment = None if options.aug == "noaug" else AugmentPipe(options.augpipe).to(self.device)
        self.controller = (
            AdaController(options.p, options.target, options.ada_kimg, options.ada_interval)
            if options.aug == "ada"
            else None
        )
        self._set_p(options.p)

    def _build_objectives(self) -> None:
        options = self.options
        self.loss = StyleGAN2Loss(
            self.generator,
            self.discriminator,
            self.augment,
            r1_gamma=options.gamma,
            style_mixing_prob=options.style_mixing_prob,
            pl_weight=options.pl_weight,
            pl_batch_shrink=options.pl_batch_shrink,
            pl_decay=options.pl_decay,
            report=self._report,
        )
        # pl_weight or gamma 0: the penalty is nothing, so its phase is left out.
        self.g_reg_interval = options.g_reg_interval if options.pl_weight > 0 else None
        self.d_reg_interval = options.d_reg_interval if options.gamma > 0 else None
        self.optimizer_g = lazy_adam(self.generator, options.lr, options.g_reg_interval)
        self.optimizer_d = lazy_adam(self.discriminator, options.lr, options.d_reg_interval)

    # ------------------------------------------------------------------------------------------------------
    # The course of a training
    # ------------------------------------------------------------------------------------------------------

    def run(self, progress: bool = True) -> None:
        """Train to the end, from the checkpoint if there is one."""
        self.restore()
        if self.images_seen == 0:
            self.snapshots.clear()
            self.snapshots.show_real()
            self.snapshots.take(self.average, 0, measure=self.source is not None)
        saved_at = time.monotonic()
        bar = tqdm(
            total=self.total_images,
            initial=self.images_seen,
            desc="train_gan",
            unit="img",
            unit_scale=True,
            disable=not progress,
        )
        notice = f"interrupted: finishing this iteration, then {'saving' if self.checkpoint else 'stopping'}"
        with bar, deferred_interruption(notice) as interruption:
            while self.images_seen < self.total_images:
                self.train_iteration()
                bar.update(self.options.batch)
                if self._tick_is_over():
                    self._finish_tick()
                    bar.set_postfix_str(self._summary())
                finished = self.images_seen >= self.total_images  # exporting may be interrupted, too
                if interruption or finished or time.monotonic() - saved_at > self.checkpoint_seconds:
                    self.save()
                    saved_at = time.monotonic()
                if interruption:
                    raise KeyboardInterrupt(f"interrupted after {self.images_seen} images")
        self._conclude()

    def train_iteration(self) -> None:
        """Show one batch: four phases, then the moving average, then the augmentation strength."""
        iteration = self.images_seen // self.options.batch
        rng = self._seed_iteration()
        real = self.stream.batch(self.images_seen, self.options.batch).to(self.device)
        labels = self.stream.label_batch(self.images_seen, self.options.batch)
        real_c = None if labels is None else labels.to(self.device)
        self._train_generator(iteration, rng)
        self._train_discriminator(iteration, real, real_c, rng)
        options = self.options
        beta = ema_beta(self.images_seen, options.batch, options.ema_kimg, options.ema_rampup)
        update_average(self.average, self.generator, beta)
        self.images_seen += options.batch
        if self.controller is not None:
            self._set_p(self.controller.after_iteration(iteration + 1, options.batch))

    def _train_generator(self, iteration: int, rng: torch.Generator) -> None:
        with trainable(self.generator, self.discriminator):
            self.loss.accumulate_gmain(self._latents(rng), self._fake_labels(rng), rng=rng)
            step_with_gradients(self.optimizer_g)
            if _is_due(self.g_reg_interval, iteration):
                gain = self.g_reg_interval or 1
                self.loss.accumulate_greg(self._latents(rng), self._fake_labels(rng), gain=gain, rng=rng)
                step_with_gradients(self.optimizer_g)

    def _train_discriminator(
        self, iteration: int, real: Tensor, real_c: Tensor | None, rng: torch.Generator
    ) -> None:
        with trainable(self.discriminator, self.generator):
            z, c = self._latents(rng), self._fake_labels(rng)
            self.loss.accumulate_dmain(real, z, real_c, c, rng=rng)
            step_with_gradients(self.optimizer_d)
            if _is_due(self.d_reg_interval, iteration):
                self.loss.accumulate_dreg(real, real_c, gain=self.d_reg_interval or 1, rng=rng)
                step_with_gradients(self.optimizer_d)

    def _seed_iteration(self) -> torch.Generator:
        """Derive this iteration's randomness; the layers' noise comes from torch's global generator."""
        torch.manual_seed(derive_seed(self.seed, Stream.LAYER_NOISE, self.images_seen))
        rng = torch.Generator(self.device)
        return rng.manual_seed(derive_seed(self.seed, Stream.ITERATION, self.images_seen))

    def _latents(self, rng: torch.Generator) -> Tensor:
        shape = [self.options.batch, self.options.z_dim]
        return torch.randn(shape, generator=rng, device=self.device)

    def _fake_labels(self, rng: torch.Generator) -> Tensor | None:
        """Draw labels [N, c_dim] as often as they occur among the images; None without labels."""
        labels = self.stream.random_labels(self.options.batch, rng)
        return None if labels is None else labels.to(self.device)

    def _report(self, name: str, values: Tensor) -> None:
        self.averages.report(name, values)
        if name == "scores_real" and self.controller is not None:
            self.controller.report(values)

    def _set_p(self, p: float) -> None:
        if self.augment is not None:
            self.augment.p.fill_(p)

    # ------------------------------------------------------------------------------------------------------
    # Ticks: a row of history, now and then a snapshot
    # ------------------------------------------------------------------------------------------------------

    def _tick_is_over(self) -> bool:
        return self.images_seen >= (self.tick + 1) * self.options.kimg_per_tick * 1000

    def _finish_tick(self) -> None:
        images_per_tick = self.options.kimg_per_tick * 1000
        self.tick = max(int(self.images_seen // images_per_tick), self.tick + 1)
        self._write_row()
        if self._snapshot_is_due():
            self.snapshots.take(self.average, self.images_seen)

    def _write_row(self) -> None:
        self.history.append(self._history_row())
        self.averages.clear()
        write_history(self.progress_dir / "history.csv", self.history)

    def _snapshot_is_due(self) -> bool:
        """Whether one belongs to the images seen so far, however long the training is."""
        due = self._row_is_written() and len(self.history) % self.options.snapshot_ticks == 0
        return due or self.images_seen == 0

    def _row_is_written(self) -> bool:
        return bool(self.history) and self.history[-1]["kimg"] == self.images_seen / 1000

    def _conclude(self) -> None:
        """Finish the last tick early, and take the last snapshot; a training that goes on has neither."""
        if self._snapshot_is_due():  # and was taken then
            return
        if not self._row_is_written():
            self._write_row()
        self.snapshots.take(self.average, self.images_seen)

    def _history_row(self) -> Row:
        averaged = ("loss_G", "loss_D", "scores_real", "scores_fake", "pl_penalty", "r1_penalty")
        return {
            "tick": len(self.history) + 1,
            "kimg": self.images_seen / 1000,
            "p": 0.0 if self.augment is None else float(self.augment.p),
            "r_t": self.averages.mean("signs_real"),
            "pl_mean": float(self.loss.pl_mean),
            **{name: self.averages.mean(name) for name in averaged},
        }

    def _summary(self) -> str:
        row = self.history[-1]
        return f"p {row['p']:.3f}, G {row['loss_G']:.2f}, D {row['loss_D']:.2f}, r_t {row['r_t']:.2f}"

    # ------------------------------------------------------------------------------------------------------
    # Checkpoint and result
    # ------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint, if there is a place for it.

        Raises:
            StyleGAN2Error: when a loss or a weight is not finite; the previous checkpoint stays.
        """
        self.loss.raise_if_diverged()
        tensors = {
            **network_tensors("generator", self.generator),
            **network_tensors("discriminator", self.discriminator),
            **network_tensors("average", self.average),
            **optimizer_tensors("optimizer_g", self.optimizer_g),
            **optimizer_tensors("optimizer_d", self.optimizer_d),
            "pl_mean": self.loss.pl_mean,
            **self.snapshots.tensors(),
        }
        self._check_finite(tensors)
        if self.checkpoint is None:
            return
        state = {
            **self._identity(),
            "images_seen": self.images_seen,
            "tick": self.tick,
            "history": self.history,
            "kid": self.snapshots.rows,
            "averages": self.averages.state_dict(),
            "controller": None if self.controller is None else self.controller.state_dict(),
            "computed_with": self._computed_with(),
        }
        save_checkpoint(self.checkpoint, tensors, state)

    def _check_finite(self, tensors: Mapping[str, Tensor]) -> None:
        broken = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
        if not broken:
            return
        kept = f"; checkpoint {self.checkpoint} was not overwritten" if self.checkpoint else ""
        raise StyleGAN2Error(
            f"training diverged: after {self.images_seen} images {len(broken)} of {len(tensors)} tensors "
            f"are not finite, {broken[0]} first{kept}; check the images, lower lr, or raise gamma"
        )

    def restore(self) -> None:
        """Go back to the checkpoint; without one, stay at the start.

        Of the options, kimg may differ: nothing but the end of the training depends on it.

        Raises:
            StyleGAN2Error: when it belongs to other options, another seed or other images, or has seen more
                images than asked for.
        """
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        tensors, state = load_checkpoint(self.checkpoint)
        self._check_identity(state)
        restore_network("generator", self.generator, tensors)
        restore_network("discriminator", self.discriminator, tensors)
        restore_network("average", self.average, tensors)
        restore_optimizer("optimizer_g", self.optimizer_g, tensors)
        restore_optimizer("optimizer_d", self.optimizer_d, tensors)
        self.loss.pl_mean = tensors["pl_mean"].to(self.device)
        self.images_seen, self.tick = state["images_seen"], state["tick"]
        self.history = state["history"]
        self.snapshots.restore(tensors, state["kid"])
        self.averages.load_state_dict(state["averages"])
        if self.controller is not None:
            self.controller.load_state_dict(state["controller"])
            self._set_p(self.controller.p)
        self.snapshots.clear(self.images_seen + self._snapshot_is_due())
        log.info("resumed from %s after %d images", self.checkpoint, self.images_seen)
        self._warn_of_other_bits(state.get("computed_with") or {})  # checkpoints of before do not say it

    def _computed_with(self) -> dict[str, Any]:
        """What the last digits of the results depend on."""
        on_cpu, compiled = self.device.type == "cpu", runs_compiled(torch.empty(1, device=self.device))
        return {
            "threads": torch.get_num_threads() if on_cpu else None,
            "ops": describe_implementation(self.device),
            "kernels": source_digest()[:16] if compiled else None,
            "processor": hashlib.sha256(processor().encode()).hexdigest()[:16] if on_cpu else None,
            "torch": torch.__version__,
        }

    def _warn_of_other_bits(self, earlier: Mapping[str, Any]) -> None:
        changes = [
            f"{name} {earlier[name]!r}, now {value!r}"
            for name, value in self._computed_with().items()
            if name in earlier and earlier[name] != value
        ]
        if changes:
            log.warning(
                "it was computed with %s: the result will not be the same bits as that of a training without "
                "an interruption",
                "; ".join(changes),
            )

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the training that wants to go on from it."""
        options = json.loads(self.options.model_dump_json())
        return {
            "options": options,
            "seed": self.seed,
            "images_sha256": self.stream.fingerprint(),
            "init_sha256": None if self.source is None else self.source.sha256,
        }

    def _check_identity(self, state: dict[str, Any]) -> None:
        own = self._identity()
        found = {"keep_snapshots": False, **state["options"]}  # checkpoints of before do not say it
        problems = [
            f"{name}: the checkpoint has {found.get(name)!r}, asked for {value!r}"
            for name, value in own["options"].items()
            if found.get(name) != value and name != "kimg"
        ]
        if state["images_seen"] > self.total_images:
            problems.append(
                f"kimg: the checkpoint has seen {state['images_seen']} images, asked for {self.total_images}"
            )
        problems += [
            f"{name}: the checkpoint has {state.get(name)!r}, this training {own[name]!r}"
            for name in ("seed", "images_sha256", "init_sha256")
            if state.get(name) != own[name]
        ]
        if problems:
            raise StyleGAN2Error(
                f"checkpoint {self.checkpoint} belongs to another training; delete it or use its settings:"
                + "".join(f"\n  - {problem}" for problem in problems)
            )

    def export(self, out_dir: Path, provenance: Mapping[str, Any]) -> None:
        """Write the finished networks, their config, the history and what the snapshots gave."""
        save_weights(out_dir / "generator.safetensors", self.average)
        save_weights(out_dir / "generator_raw.safetensors", self.generator)
        save_weights(out_dir / "discriminator.safetensors", self.discriminator)
        write_history(out_dir / "history.csv", self.history)
        config = {
            "generator": self.generator.init_kwargs,
            "discriminator": self.discriminator.init_kwargs,
            **self._identity(),
            "images_seen": self.images_seen,
            "p": 0.0 if self.augment is None else float(self.augment.p),
            "imported_from": None if self.source is None else self.source.imported_from,
            **provenance,
        }
        write_config(out_dir, config)
        self.snapshots.export(out_dir, {name: value for name, value in config.items() if name != "p"})
        if self.snapshots.best is not None:
            check_and_load(self.average, self.snapshots.best, "the best snapshot")
            save_weights(out_dir / "best" / "generator.safetensors", self.average)
            write_config(out_dir / "best", {**config, "snapshot": self.snapshots.best_row})


def _is_due(interval: int | None, iteration: int) -> bool:
    return interval is not None and iteration % interval == 0
