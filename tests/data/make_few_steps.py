"""Writes few_steps.json: noise schedules of the few-step distillations, as
diffusers' FlowMatchEulerDiscreteScheduler makes them (diffusers 0.42.1, torch 2.11).

    python make_few_steps.py > few_steps.json

The configurations: what the published distillations of Qwen-Image tell users to set
(both shifts ln 3, no terminal level), a static shift, and the two mixed.
"""

import json
import math

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler

BASE = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "base_image_seq_len": 256,
    "base_shift": math.log(3),
    "invert_sigmas": False,
    "max_image_seq_len": 8192,
    "max_shift": math.log(3),
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": None,
    "stochastic_sampling": False,
    "time_shift_type": "exponential",
    "use_beta_sigmas": False,
    "use_dynamic_shifting": True,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}
CONFIGS = {
    "both shifts ln 3": BASE,
    "static shift 3": {**BASE, "use_dynamic_shifting": False, "shift": 3.0},
    "static shift 3 with a terminal level": {
        **BASE,
        "use_dynamic_shifting": False,
        "shift": 3.0,
        "shift_terminal": 0.02,
    },
    "no shift at all": {**BASE, "use_dynamic_shifting": False},
    "linear": {**BASE, "time_shift_type": "linear", "base_shift": 0.5, "max_shift": 0.9},
    "without a terminal level": {**BASE, "base_shift": 0.5, "max_shift": 0.9},
}


def mu_of(config, tokens):
    slope = (config["max_shift"] - config["base_shift"]) / (
        config["max_image_seq_len"] - config["base_image_seq_len"]
    )
    return tokens * slope + config["base_shift"] - slope * config["base_image_seq_len"]


schedulers = []
for name, config in CONFIGS.items():
    schedules = []
    for steps, tokens in ((2, 4096), (4, 1024), (4, 4096), (8, 4096), (8, 6032), (50, 4096)):
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
        scheduler.set_timesteps(
            sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu_of(config, tokens)
        )
        schedules.append(
            {
                "steps": steps,
                "tokens": tokens,
                "sigmas": [float(sigma) for sigma in scheduler.sigmas],
                "timesteps": [float(timestep) for timestep in scheduler.timesteps],
            }
        )
    schedulers.append({"name": name, "config": config, "schedules": schedules})
print(json.dumps({"schedulers": schedulers}, indent=1))
