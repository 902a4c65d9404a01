"""Machines that are not at hand, as lorakit would describe them."""

from lorakit.machine import hardware
from lorakit.machine.hardware import Facts

GB = 10**9


PACKAGES = {
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "peft": "0.21.2",
    "bitsandbytes": "0.50.2",
    "datasets": "5.2.0",
}


ARCHS = ("sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")


# As nvidia-smi reports them.
T4, P100, V100, L4, A10, A100, H100, H200, RTX = hardware.read_cards("""\
Tesla T4, 15360, 7.5
Tesla P100-PCIE-16GB, 16384, 6.0
Tesla V100-SXM2-16GB, 16384, 7.0
NVIDIA L4, 23034, 8.9
NVIDIA A10G, 23028, 8.6
NVIDIA A100-SXM4-80GB, 81920, 8.0
NVIDIA H100 80GB HBM3, 81559, 9.0
NVIDIA H200, 143771, 9.0
NVIDIA GeForce RTX 5090, 32607, 12.0""")


def facts(*cards, **more):
    return Facts(
        **{
            "packages": PACKAGES,
            "memory": 32 * GB,
            "disk_free": 100 * GB,
            "cores": 4,
            "python": "3.12.1",
            "cards": cards,
            "torch_archs": ARCHS if cards else (),
            **more,
        }
    )


# What a user may sit at, recorded.
RECORDED = {
    "Colab, T4": facts(T4, place="colab", memory=13 * GB),
    "Colab, L4": facts(L4, place="colab"),
    "Colab, A100": facts(A100, place="colab", drive=True),
    "Colab, CPU": facts(place="colab", memory=13 * GB),
    "Kaggle, one T4": facts(T4, place="kaggle"),
    "Kaggle, two T4": facts(T4, T4, place="kaggle"),
    "server, V100": facts(V100),
    "server, A10G": facts(A10),
    "server, eight H100": facts(*[H100] * 8, memory=1000 * GB),
    "server, H200": facts(H200),
    "desktop, RTX 5090": facts(RTX),
    "mixed, T4 and L4": facts(L4, T4),
    "Mac, 16 GB": facts(place="mac", mps=True, memory=16 * GB),
    "server, CPU": facts(),
}
