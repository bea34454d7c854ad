"""What the commands do, one file for each thing that is done.

Every mode is a function (config, folder, engine) that reads and writes one run folder:

    config.json  checkpoints/  ema_snapshots/  ema/  tensorboard/  metrics.jsonl  results.json  likelihood/  latents/
    samples_<sampler>.{png,npz,json}    of the last request; samples_<sampler>_1, ... are those of former ones

Whatever is random depends on (seed, index of the sample or step) only, so that neither the batch size, nor the number
of processes, nor an interruption changes a result.
"""
