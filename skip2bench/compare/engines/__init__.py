"""Where cells run side by side: on cores or GPUs of this machine, under Ray, as jobs of SLURM.

The comparison's folder stays the truth. Beside what every comparison has, it holds

    workers/call.json        who drives the comparison now; workers of an earlier call stop by it
    workers/NAME.job.json    what a worker is told
    workers/NAME.json        what it does, rewritten while it lives
    workers/NAME.log         what it printed
"""
