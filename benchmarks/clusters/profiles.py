"""Clusters by name. What is a vendor's figure says whose; the rest is an assumption, and the output says so.

Latencies are those of a hop of a collective as a library adds them up (launch of the copy, flags, the wire), not a
switch's. `inner` and `outer` are what collectives reach, nine tenths of the wire, less on Ethernet without RDMA.
"""

from __future__ import annotations

from clusters.law import Cluster

GB, GBIT = 1e9, 1e9 / 8
WIRE = 0.9  # assumption: share of a link's rate that large collectives reach

# NVIDIA, H100 data sheet (SXM5): 989.4 TFLOP/s dense 16-bit, 80 GB, 3.35 TB/s, NVLink 900 GB/s both directions.
# NVIDIA, DGX H100 data sheet: 8 GPUs, 8 ConnectX-7 of 400 Gbit/s for compute.
H100 = Cluster(
    name="dgx-h100-400g", per_node=8, peak=989.4e12, memory=80e9, memory_speed=3.35e12,
    inner=WIRE * 450 * GB, inner_latency=1.5e-6, outer=WIRE * 8 * 400 * GBIT, outer_latency=6e-6,
    reading=20 * GB, writing=10 * GB, store_read=200 * GB, store_write=100 * GB, opens=50_000, stream=1 * GB,
    launch=6e-6,
    sources="GPU, NVLink, network cards: NVIDIA's data sheets of H100 SXM5 and DGX H100; store: assumed, a parallel "
    "file system of 200 GB/s; latencies, launch, hashing: assumed",
)  # fmt: skip

# NVIDIA, A100 data sheet (SXM4): 312 TFLOP/s dense 16-bit, 40 GB, 1,555 GB/s, NVLink 600 GB/s both directions.
# AWS, EC2 P4 instance page: p4d.24xlarge, 8 A100, 400 Gbit/s EFA for the node, EBS 19 Gbit/s.
A100 = Cluster(
    name="a100-efa-400g", per_node=8, peak=312e12, memory=40e9, memory_speed=1.555e12,
    inner=WIRE * 300 * GB, inner_latency=2e-6, outer=WIRE * 400 * GBIT, outer_latency=20e-6,
    reading=10 * GB, writing=5 * GB, store_read=100 * GB, store_write=50 * GB, opens=5_500, stream=0.7 * GB,
    launch=8e-6,
    sources="GPU, NVLink, EFA: NVIDIA's data sheet of A100 SXM4, AWS's page of p4d.24xlarge; opens: S3's documented "
    "5,500 GETs/s of a prefix; its bandwidth, latencies, launch, hashing: assumed",
)  # fmt: skip

# NVIDIA, A10 data sheet: 125 TFLOP/s dense 16-bit, 24 GB, 600 GB/s, PCIe 4.0 x16 (64 GB/s both directions).
ETHERNET = Cluster(
    name="ethernet-25g", per_node=4, peak=125e12, memory=24e9, memory_speed=600e9,
    inner=0.7 * 32 * GB, inner_latency=4e-6, outer=0.8 * 25 * GBIT, outer_latency=30e-6,
    reading=0.8 * 25 * GBIT, writing=0.8 * 25 * GBIT, store_read=5 * GB, store_write=2 * GB, opens=2_000,
    stream=0.5 * GB, launch=8e-6,
    sources="GPU, PCIe: NVIDIA's data sheet of A10; one card of 25 Gbit/s a node, shared with the store (NFS of "
    "5 GB/s); latencies (TCP), launch, hashing: assumed",
)  # fmt: skip

PROFILES = {each.name: each for each in (H100, A100, ETHERNET)}

UTILISATION = {"convolution": 0.08, "transformer": 0.35}
"""Share of a GPU's peak that counted FLOPs reach, where it was not measured: networks of convolutions with BatchNorm
are bound by memory; `--mfu` says otherwise."""

SPREAD = 0.01
"""Deviation of log step time over ranks, where it was not measured."""

WORKER = {"image": 700.0, "small": 7000.0, "text": 2000.0, "series": 3000.0, "audio": 150.0}
"""Samples/s that one loader worker prepares, where it was not measured in this run. Pictures: two views of JPEGs of 500
and (small) 64 pixels on a core of an AMD EPYC, as measured in results/NOTES-views.md; more crops take longer. The
others are assumed."""

SAMPLE_BYTES = {"image": 110_000, "small": 3_000, "text": 4_000, "series": 15_000, "audio": 200_000}
"""Bytes of a sample in a shard: a JPEG of ImageNet (138 GB / 1,281,167), a PNG of CIFAR-10 (small: up to 64 pixels), a
document of a thousand tokens, a window of a table of 7 channels, 15 s of flac."""

SHARD = 256e6
"""Bytes of a shard: what one open of the store brings."""

START = 25.0
"""Seconds from a command to the first step of one rank: imports, networks, loader. Assumed on clusters."""
