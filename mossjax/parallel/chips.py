"""What a chip can do at most, by the name that jax gives it."""

import jax

# Dense bfloat16 operations a second of one jax device, from the makers' data sheets.
PEAK_FLOPS = {
    'TPU v4': 275e12, 'TPU v5 lite': 197e12, 'TPU v5e': 197e12, 'TPU v5': 459e12,
    'TPU v5p': 459e12, 'TPU v6 lite': 918e12, 'TPU v6e': 918e12,
    'NVIDIA H100 80GB HBM3': 989e12, 'NVIDIA H200': 989e12,
}  # fmt: skip


def peak_flops(device: jax.Device) -> float | None:
    """Of a device, None where nobody has said."""
    return PEAK_FLOPS.get(device.device_kind)


def memory_in_use(device: jax.Device) -> dict[str, float]:
    """GiB of the device's memory that are in use, and were at most; {} where it does not say."""
    stats = device.memory_stats() or {}
    names = {'bytes_in_use': 'hbm_gib', 'peak_bytes_in_use': 'hbm_peak_gib'}
    return {name: stats[key] / 2**30 for key, name in names.items() if key in stats}
