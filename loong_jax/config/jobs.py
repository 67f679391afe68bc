"""The jobs that ``main`` runs; a file in ``configs/`` changes what it must of one of them."""

import dataclasses
import typing

from loong_jax.config.checks import require, require_choice, require_not_negative, require_positive, require_seed
from loong_jax.config.evaluation import EvaluateJob
from loong_jax.config.model import LossConfig, TransformerConfig
from loong_jax.config.sampling import DecodingConfig, SamplingChanges, SamplingConfig
from loong_jax.config.serving import ServeJob
from loong_jax.config.sources import require_pixels
from loong_jax.config.tokenizer import DiscriminatorConfig, TokenizerConfig, TokenizerLossConfig
from loong_jax.config.training import DataConfig, MeshConfig, OptimizerConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class TokenizerJob:
    """Train the video tokenizer."""

    task: str = "tokenizer"
    seed: int = 0
    init_from: str = ""  # workdir of another tokenizer training to start from, relative to this workdir
    freeze_encoder: bool = False  # train the decoder alone: ids stay what they are in init_from
    mesh: MeshConfig = MeshConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    loss: TokenizerLossConfig = TokenizerLossConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()  # made only where loss.adversarial_weight is above 0
    ema_decay: float = 0.0  # running mean of the weights, for evaluation and for use; 0: the weights themselves
    measure_lpips: bool = False  # at evaluations; needs the extra [eval], as the loss does
    optimizer: OptimizerConfig = OptimizerConfig(weight_decay=0.0, b1=0.5, b2=0.99)
    train: TrainConfig = TrainConfig()

    def __post_init__(self):
        require_seed(self)
        require_pixels("data.source", self.data.source)
        self.tokenizer.latent_frames(self.data.num_frames)
        self.tokenizer.latent_size(self.data.frame_size)
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "it must lie in [0, 1)")
        has_encoder = not self.freeze_encoder or self.init_from != ""
        require(has_encoder, "freeze_encoder", True, "give the training whose encoder to keep, --config.init_from=DIR")


# MAGVIT-v2's recipe (arXiv 2310.05737, appendix A.2); the weights of squares are those of pixels in [0, 1], turned to
# pixels in [-1, 1]. When the discriminator starts is a choice.
FULL_TOKENIZER_JOB = TokenizerJob(
    tokenizer=TokenizerConfig(remat=True, decoder_norm="adaptive"),
    loss=TokenizerLossConfig(
        reconstruction_weight=1.25,
        perceptual_weight=0.1,
        adversarial_weight=0.1,
        adaptive_max=0.0,
        adversarial_start=10_000,
        adversarial_ramp=2_000,
        r1_weight=40.0,
        lecam_weight=0.001,
    ),
    ema_decay=0.999,
    measure_lpips=True,
    optimizer=OptimizerConfig(weight_decay=0.0, b1=0.0, b2=0.99),
)


@dataclasses.dataclass(frozen=True)
class TokenizeJob:
    """Turn a source into token shards for the language model, with a frozen tokenizer."""

    task: str = "tokenize"
    tokenizer_path: str = "../tokenizer"  # workdir of the tokenizer training, relative to this workdir
    data: DataConfig = DataConfig(num_frames=65)  # stages on shorter clips read the first frames
    num_held_out: int = 512  # clips of the held-out split

    def __post_init__(self):
        require_positive(self, "num_held_out")
        require_pixels("data.source", self.data.source)


@dataclasses.dataclass(frozen=True)
class CheckDataJob:
    """Read a source and say what it holds, without training anything."""

    task: str = "check_data"
    tokenizer_path: str = (
        ""  # workdir of a tokenizer training, relative to this workdir: also show clips decoded from ids
    )
    data: DataConfig = DataConfig()
    num_examples: int = 1000  # of each split, that are read

    def __post_init__(self):
        require_positive(self, "num_examples")
        require_pixels("data.source", self.data.source)


@dataclasses.dataclass(frozen=True)
class LanguageModelJob:
    """Train the language model for one stage on the ids of a frozen tokenizer."""

    task: str = "language_model"
    seed: int = 0
    tokenizer_path: str = "../tokenizer"  # workdir of the tokenizer training, relative to this workdir
    init_from: str = ""  # workdir of the stage before, relative to this workdir; empty: from scratch
    codebook_init: bool = False  # from scratch, similar codes start as similar ids
    allow_untrained_tokenizer: bool = False  # for debugging: a random tokenizer where tokenizer_path is missing
    tokenizer: TokenizerConfig = TokenizerConfig()  # used only for the untrained one
    mesh: MeshConfig = MeshConfig()
    choose_mesh: bool = False  # take the axis sizes that fit the devices, their memory and the shapes, not mesh's
    model: TransformerConfig = TransformerConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    ema_decay: float = 0.0  # running mean of the weights, for evaluation and for use; 0: the weights themselves
    sampling: SamplingConfig = SamplingConfig()  # how the model's videos are sampled where nothing else is asked for
    accumulate: int = 1  # parts of a batch that are worked through in turn, for less memory
    num_previews: int = 0  # held-out texts whose videos are sampled at each evaluation, as a picture; of one process
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()

    def __post_init__(self):
        require_seed(self)
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "it must lie in [0, 1)")
        require_positive(self, "accumulate")
        require_not_negative(self, "num_previews")
        is_possible = self.train.batch_size % self.accumulate == 0
        allowed = f"it must divide train.batch_size {self.train.batch_size}"
        require(is_possible, "accumulate", self.accumulate, allowed)
        is_open = not self.choose_mesh or self.mesh == MeshConfig(num_slices=self.mesh.num_slices)
        require(is_open, "choose_mesh", True, "it sets the sizes of mesh: leave those as they are")


@dataclasses.dataclass(frozen=True)
class SampleJob:
    """Sample videos from a trained language model."""

    task: str = "sample"
    seed: int = 0
    model_path: str = "package:digits"  # or the workdir of a language-model training, relative to this workdir
    prompt: str = "a red 7 moves left"  # several prompts: separate them with "|"
    prompts_file: str = ""  # instead: a text file with a prompt on each line, or "-" for standard input
    batch_size: int = 8  # prompts that are sampled together
    outputs: str = "mp4|gif|sheet"  # of each video; also "mkv", without loss, and "frames", a PNG each
    image: str = ""  # file whose picture is the first frame
    video: str = ""  # or file to go on from
    decode: str = ""  # instead of sampling, make videos of saved ids: a file, NAME.ids, or a folder of them
    sampling: SamplingChanges = SamplingChanges()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        require_seed(self)
        require(self.prompts_file or self.prompt.strip(" \n\t|") != "", "prompt", self.prompt, "give some text")
        require_positive(self, "batch_size")
        kinds = self.outputs.split("|")
        is_possible = set(kinds) <= {"mp4", "gif", "mkv", "frames", "sheet"} and len(set(kinds)) == len(kinds)
        require(is_possible, "outputs", self.outputs, 'use mp4, gif, mkv, frames or sheet, each once, separated by "|"')
        require(not (self.image and self.video), "video", self.video, "leave it out where image is given")


@dataclasses.dataclass(frozen=True)
class DemoJob:
    """The whole of Loong in small: both trainings, a minute of video, and a table of results."""

    task: str = "demo"
    seed: int = 0
    image_tokenizer: TokenizerJob = TokenizerJob()
    tokenizer: TokenizerJob = TokenizerJob()
    stage1: LanguageModelJob = LanguageModelJob()
    stage2: LanguageModelJob = LanguageModelJob()
    stage3: LanguageModelJob = LanguageModelJob()
    sample: SampleJob = SampleJob()
    num_eval_clips: int = 256  # held-out clips for PSNR and codebook usage
    num_eval_prompts: int = 64  # held-out prompts that are sampled and read
    batch_size: int = 32  # of these so many together: the keys and values of more do not fit a CPU's caches

    def __post_init__(self):
        require_seed(self)
        require_positive(self, "num_eval_clips", "num_eval_prompts", "batch_size")


@dataclasses.dataclass(frozen=True)
class ClaimsJob:
    """Train and sample the base recipe and what the claims compare it with (claims/arms.py), several seeds each."""

    task: str = "claims"
    image_tokenizer: TokenizerJob = TokenizerJob()
    tokenizer: TokenizerJob = TokenizerJob()
    stage1: LanguageModelJob = LanguageModelJob()
    stage2: LanguageModelJob = LanguageModelJob()
    stage3: LanguageModelJob = LanguageModelJob()
    num_seeds: int = 3
    first_seed: int = 0
    num_prompts: int = 128  # held-out prompts that are sampled and read
    num_clips: int = 256  # held-out clips for the tokenizers' PSNR and codebook usage
    batch_size: int = 32  # prompts that are sampled together, as in the demo

    def __post_init__(self):
        require_positive(self, "num_seeds", "num_prompts", "num_clips", "batch_size")
        require_not_negative(self, "first_seed")


@dataclasses.dataclass(frozen=True)
class EstimateJob:
    """Compile a training or the sampling for devices that need not be there."""

    task: str = "estimate"
    target: str = "v5e:2x4"  # CHIP:LAYOUT of a TPU slice, or "cpu"; several: separate them with "|"
    experiment: str = "stage3:700m"  # NAME[:VARIANT] of a training in ``configs``; several as above
    configs: str = "configs"  # the folder
    step: str = "training"  # or "sampling": prefill and the decoding loop of a clip
    batch_sizes: tuple[int, ...] = ()  # tried in turn until one does not fit; empty: the largest is looked for
    length: int = 0  # ids in a row; 0: as the experiment's
    # How hard the compiler tries, "O0" to "O3", or "" as in a training; at "O1" it is several times faster, and its
    # program needs somewhat more memory or less.
    optimization_level: str = ""
    decoding: DecodingConfig = DecodingConfig()  # of sampling
    compiler_time: bool = False  # also ask for the compiler's own guess, which takes two more compilations
    # What is changed of the experiment: "" and 0 are as it is there.
    remat: str = ""
    attention: str = ""
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        require(min(self.batch_sizes, default=1) > 0, "batch_sizes", self.batch_sizes, "each must be greater than 0")
        require_choice("step", self.step, ("training", "sampling"))
        require_choice("optimization_level", self.optimization_level, ("", "O0", "O1", "O2", "O3"))
        require_not_negative(self, "length")


@dataclasses.dataclass(frozen=True)
class DoctorJob:
    """Say what of this machine works, and how to mend what does not."""

    task: str = "doctor"
    full: bool = True  # also train and sample with tiny models
    timeout: float = 300.0  # seconds for each part that is tried in a process of its own
    write_mib: int = 64  # written to the workdir to time its disk
    # Under which the doctor warns.
    min_memory_gib: float = 4.0
    min_disk_gib: float = 2.0
    min_write_speed: float = 50.0  # MiB a second

    def __post_init__(self):
        require_positive(self, "timeout", "write_mib")
        require_not_negative(self, "min_memory_gib", "min_disk_gib", "min_write_speed")


@dataclasses.dataclass(frozen=True)
class ExportJob:
    """Write a trained model as one folder, to keep and to hand on."""

    task: str = "export"
    model_path: str = "../stage3"  # workdir of a language-model training, relative to this workdir, or a model folder
    format: str = "loong"  # or "llama": a LlamaForCausalLM of transformers, without the tokenizer
    dtype: str = "float32"  # of the weights in the files but those that ids depend on; also "bfloat16" and "float16"
    texts_file: str = ""  # file with a text a line: the embeddings of other words are left out
    llama_weights: str = ""  # folder of a LlamaForCausalLM, whose weights take the place of the training's
    upload: str = ""  # OWNER/NAME on the Hugging Face Hub, where the folder goes besides; needs the extra [hub]
    # What the card says besides.
    example: str = "a red 7 moves left"  # a prompt
    command: str = ""  # what trained the model
    results: str = ""  # JSON file with what was measured, as results.json of the demo

    def __post_init__(self):
        require_choice("format", self.format, ("loong", "llama"))
        require_choice("dtype", self.dtype, ("float32", "bfloat16", "float16"))
        is_plain = self.format == "loong" or (not self.texts_file and self.dtype == "float32")
        require(is_plain, "format", self.format, "a LLaMA is written in float32 and with all texts")


Job = (
    TokenizerJob
    | TokenizeJob
    | CheckDataJob
    | LanguageModelJob
    | SampleJob
    | ServeJob
    | DemoJob
    | ClaimsJob
    | EvaluateJob
    | EstimateJob
    | DoctorJob
    | ExportJob
)
JOBS = {job.task: job for job in typing.get_args(Job)}
