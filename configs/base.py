"""Every key of a configuration, with its unit and its default. Other configurations override what differs."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The defaults: a small U-Net on 8x8 digits under the VP-SDE."""
    config = ConfigDict()
    config.seed = 0  # one seed gives the same weights, samples and likelihoods
    config.device = "auto"  # "cpu", "cuda", "cuda:1", ...; "auto" takes a GPU where there is one

    config.deterministic = False  # the same bits again on a GPU too, by torch.use_deterministic_algorithms

    config.compile = ""  # torch.compile's backend for the network, such as "inductor"; "" for none

    config.data = data = ConfigDict()
    data.dataset = "digits"  # a key of sde_diffusion.data.DATASETS
    data.root = ""  # folder of the data (cifar10, folder)
    data.source = "auto"  # cifar10: "parquet", "huggingface" or "binary"; "auto" looks at the root
    data.name = ""  # name of a data set on the Hugging Face hub
    data.image_size = 0  # pixels a side; 0 keeps the set's own
    data.shape = "moons"  # toy2d: "moons", "checkerboard" or "mixture"
    data.size = 0  # toy2d: number of training points; 0 for its default
    data.flip = False  # random horizontal flips in training
    data.subtract_mean = "none"  # "all": the mean of the training set; "class": of each class
    data.storage = "auto"  # "memory", "mapped" or "streaming"; "auto" takes memory for sets of less than 2 GiB
    data.held_out = 0  # samples that are held out at most; 0 for all there are
    data.crop = "centre"  # or "random", from pictures that are decoded as they are read (mapped, streaming)
    data.min_crop = 0.8  # "random": smallest side of the crop, as a share of the picture's shorter one
    data.workers = 0  # processes that decode pictures (mapped, streaming)
    data.prefetch = 2  # batches that each of them is ahead
    data.shuffle_window = 4096  # streaming: pictures that are shuffled among one another
    data.corrupt_limit = 0.01  # share of pictures that cannot be read, beyond which reading stops
    data.dequantize = False  # train on dequantised grey levels, the density that bits/dim is about

    config.process = process = ConfigDict()
    process.name = "VPSDE"  # a key of sde_diffusion.settings.PROCESS_BUILDERS
    process.beta_min = 0.1  # VP, sub-VP, DiscreteVP: rate at t = 0
    process.beta_max = 20.0  # rate at t = 1 (Song et al. 2021, Appendix C)
    process.sigma_min = 0.01  # VE, EDM, DiscreteVE: noise std, in model units (data in [-1, 1])
    process.sigma_max = 50.0
    process.levels = 1000  # discrete processes: number of noise levels

    config.model = model = ConfigDict()
    model.network = "unet"  # a key of sde_diffusion.nets.NETWORKS
    model.prediction = "v"  # a key of core.prediction.PREDICTIONS: "eps", "x0", "v", "velocity", "edm", ...
    model.label = "time"  # a key of denoisers.c_noise.C_NOISES: "time", "logsnr", "log_sigma", "edm", "index", ...
    model.input_scale = "none"  # "unit": divide x by its std; "centre": 2 x - 1, for data in [0, 1]
    model.sigma_data = 0.5  # std of the data, which prediction and weighting "edm" and input scale "unit" assume
    model.class_conditional = False
    model.variance = "fixed"  # or "learned_range": of each step, between its two bounds (iDDPM)
    model.dropout = 0.0
    model.embedding = "positional"  # "unet", "mlp", "songunet": of the noise label, "positional" or "fourier"
    model.fourier_scale = 16.0  # std of the random Fourier frequencies
    model.unet = unet = ConfigDict()  # "unet"
    unet.channels = 128  # at full resolution
    unet.multipliers = (1, 2, 2, 2)  # of the channels, one a level
    unet.blocks = 2  # residual blocks a level
    unet.attention_resolutions = (16,)  # pixels a side
    unet.heads = 1
    model.mlp = mlp = ConfigDict()  # "mlp"
    mlp.width = 256
    mlp.blocks = 4

    model.options = ConfigDict()  # arguments of the other networks; --network.NAME VALUE sets them

    config.training = training = ConfigDict()
    training.steps = 1000  # optimiser updates
    training.batch_size = 128  # samples of an update, of all processes and passes together
    training.learning_rate = 2e-4
    training.adam_betas = (0.9, 0.999)
    training.adam_eps = 1e-8
    training.weight_decay = 0.0
    training.warmup_steps = 100  # linear, from 0
    training.cooldown_steps = 0  # cosine, to 0 at the last step
    training.grad_clip = 1.0  # Euclidean norm of the whole gradient; 0 for none
    training.precision = "fp32"  # of the network's passes: or "bf16", or "fp16" with scaled gradients
    training.accumulate = 1  # passes of each process before an update, each with its part of the batch
    training.sharding = "none"  # or "full": gradients, averages and Adam's state are divided among the processes
    training.ema_decay = 0.999  # of the average "ema"
    training.ema_decays = ()  # of further ones, named ema_0.9999
    training.ema_lengths = ()  # relative lengths of averages named power_0.05, from which --mode ema makes others
    training.ema_snapshots = 0  # steps between snapshots of these; 0 for none
    training.augment = 0.0  # probability of each of EDM's augmentations, which the network is told of; 0 for none
    training.label_dropout = 0.0  # share of the samples whose class is withheld, if class-conditional
    training.loss = "score_matching"  # or "vlb", the discrete bound; or "hybrid", with vlb_weight of it
    training.vlb_weight = 1e-3  # "hybrid": the bound's share (Nichol and Dhariwal 2021, section 3.1)
    training.weighting = "simple"  # "simple", "v", "velocity", "likelihood", "edm", "min_snr" or "x0"
    training.times = "uniform"  # a key of objectives.times.TIME_SAMPLERS: "stratified", "levels", "lognormal", ...
    training.p_mean = -1.2  # "lognormal": mean of log(sigma/alpha) (Karras et al. 2022); "logit_normal": of log t/(1-t)
    training.p_std = 1.2  # and its std
    training.shift = 1.0  # factor of sigma/alpha of the times, within the process's range: above 1 for more noise
    training.log_every = 50  # steps
    training.evaluate_every = 1000  # steps between held-out losses
    training.held_out_batches = 8  # batches of a held-out loss
    training.sample_every = 0  # steps between sample grids in TensorBoard; 0 for none
    training.checkpoint_every = 1000  # steps
    training.keep_checkpoints = 2  # newest ones kept
    training.milestone_every = 0  # steps between checkpoints that are kept for ever; 0 for none
    training.held_out_levels = 10  # parts of equal size, by log-SNR, of which held-out losses are told
    training.skip_limit = 10  # updates in a row that may be skipped, their loss being not finite or exploded
    training.explosion = 1e4  # a loss of so many times its running mean has exploded; 0 for none

    config.sampling = sampling = ConfigDict()
    sampling.sampler = "ddim"  # a key of sde_diffusion.SAMPLERS
    sampling.steps = 50  # grid nodes, the step to x0_hat included
    sampling.gallery = ("ddim:50", "pc:200", "ode")  # the bare job's samplers: NAME[:STEPS[:OPTION=VALUE,...]]
    sampling.options = ConfigDict()  # named options of the sampler; --sampler.NAME VALUE sets them
    sampling.grid = "auto"  # a key of sde_diffusion.GRIDS; "auto" takes the one that suits the sampler
    sampling.grid_options = ConfigDict()  # named options of the grid; --grid.NAME VALUE sets them
    sampling.snap = False  # move the nodes to the levels of the network's own process, where it is discrete
    sampling.t_end = -1.0  # time of the last node; negative for the process's smallest sampling time
    sampling.t_start = 1.0  # time at which the grid begins, before the shift; 1 is the prior's
    sampling.shift = 1.0  # factor of sigma/alpha of the nodes, within the process's range: above 1 for more noise
    sampling.guidance = 0.0  # classifier-free: weight w of x0_hat = (1 + w) x0_hat(x | c) - w x0_hat(x); 0 for none
    sampling.clip = False  # clip x0_hat to the range of the data
    sampling.noise = "white"  # or "brownian": one path for each sample, which other numbers of steps follow too
    sampling.prior = ""  # "process" lets a grid start where its SNR is above 0.1, from the noise of its first node
    sampling.precision = "fp32"  # of the network's passes: or "bf16", "fp16"; the state is float32 always
    sampling.num_samples = 64
    sampling.batch_size = 500  # samples at once, and stored at once; does not change them
    sampling.format = "npz"  # one file; or "png", a folder of pictures; or "zip", archives of them
    sampling.weights = "ema"  # or "raw", or another average of the training or of --mode ema

    config.edit = edit = ConfigDict()  # --mode edit: pictures with noise, and back
    edit.input = ""  # a picture, a folder or an archive of them, or a .npz of images or samples
    edit.strength = 0.0  # share of the steps that are taken, in (0, 1]; 0 for the grid as it is

    config.likelihood = likelihood = ConfigDict()
    likelihood.figures = ("ode", "elbo")  # keys of sde_diffusion.settings.FIGURES: the flow, the discrete bound, "vlb"
    likelihood.split = "test"  # or "train"
    likelihood.folder = ""  # a folder of images in place of a split
    likelihood.image_size = 0  # pixels a side, to which the pictures of the folder are cut; 0 keeps their own
    likelihood.num_samples = 0  # 0 for all
    likelihood.batch_size = 64  # samples at once, and kept at once; changes nothing with method per_sample
    likelihood.method = "per_sample"  # a key of sde_diffusion.SOLVERS
    likelihood.rtol = 1e-4
    likelihood.atol = 1e-4
    likelihood.divergence = "hutchinson"  # or "exact"
    likelihood.probes = 1
    likelihood.probe = "rademacher"  # or "gaussian"
    likelihood.t_min = -1.0  # "ode": time at which the data lie; negative for the process's smallest likelihood time
    likelihood.sensitivity = False  # how much bits/dim change where t_min is doubled
    likelihood.fixed_steps = 100  # of the methods without tolerances
    likelihood.max_nfe = 100_000  # evaluations of a batch, beyond which the flow is given up
    likelihood.dequantizer = "uniform"  # a key of sde_diffusion.data.DEQUANTIZERS; "none" is for continuous data
    likelihood.levels = 1000  # of the discrete bound, where the process is a continuous one; log-SNR equally spaced
    likelihood.terms = 0  # levels to evaluate for each sample, drawn from sections; 0 for all
    likelihood.cdf = "exact"  # the decoder's, of grey levels; or "tanh", improved-diffusion's approximation
    likelihood.points = 100  # of "vlb", the bound in continuous time

    config.compare = compare = ConfigDict()  # --mode compare, with which the bare job ends
    # NAME[:[STEPS][:OPTION=VALUE,...]]: what a first look needs; () leaves the report out of the bare job
    compare.samplers = ("ddpm", "ddim", "heun", "dpmpp_2m", "unipc")
    compare.steps = (5, 10, 20)  # budgets of the samplers whose steps are not given
    compare.weights = ()  # "ema", "raw", ...; () for sampling.weights
    compare.checkpoints = ()  # steps of stored checkpoints; () for the newest
    compare.guidance = ()  # weights; () for sampling.guidance
    compare.metrics = ()  # keys of sde_diffusion.metrics.METRICS, the one that decides first; () for usual ones
    compare.features = "auto"  # a key of sde_diffusion.metrics.EXTRACTORS; "auto" takes what suits the data
    compare.inception = ""  # file of Inception's weights; "" for those in the cache of torch-fidelity
    compare.split = "train"  # or "test": the real samples that metrics compare with
    compare.reference_samples = 0  # of them; 0 for all, but 50,000 at most
    compare.bootstraps = 100  # resamplings for each interval
    compare.shown = 10  # samples in the rows and films of the report
    compare.flow_samples = 64  # samples whose distance to the converged flow is measured
    compare.flow_rtol = 1e-5  # tolerances of that flow
    compare.likelihood = True  # bits/dim in the report
    compare.cache = ""  # folder of classifiers and reference statistics; "" for the user's cache

    config.oracle = oracle = ConfigDict()  # --mode compare of a closed-form model, in place of a network
    oracle.kind = ""  # a key of sde_diffusion.settings.ORACLES; "" for none
    oracle.dims = 12
    oracle.components = 2

    config.ema = ema = ConfigDict()  # --mode ema
    ema.lengths = (0.05, 0.1, 0.15)  # relative lengths of the averages to make
    ema.step = 0  # at which they end; 0 for the last snapshot

    config.latents = latents = ConfigDict()
    latents.pairs = 6  # held-out images to interpolate between, of one class where the network is told it
    latents.points = 9  # from one image to the other
    latents.temperatures = (0.6, 0.8, 0.9, 1.0, 1.1, 1.2)  # factors of the first images' latents
    latents.rtol = 1e-5
    latents.figures = ("rmse", "psnr", "ssim")  # of decoded images; keys of sde_diffusion.metrics.RECONSTRUCTIONS

    config.importing = importing = ConfigDict()  # --mode import and export
    importing.source = "score_sde"  # a key of sde_diffusion.SOURCES
    importing.path = ""  # the file, or diffusers' folder
    importing.config = ""  # JSON file of the source's own keys, or a published model's name, where the file has none
    return config.lock()
