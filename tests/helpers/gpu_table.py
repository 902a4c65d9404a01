"""What tests on a card measure, printed as one table at the end of the session."""

import torch

TABLE: list[tuple[str, str]] = []


def noted(what, figure):
    TABLE.append((what, str(figure)))
    return figure


def lines():
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return [
        f"{name}, torch {torch.__version__}",
        *(f"{what:<62} {figure}" for what, figure in TABLE),
    ]
