"""The paper's tables in the terminal, ours beside the printed value."""

from rich.console import Console
from rich.table import Table


def show_table4(console: Console) -> None:
    """Trained parameters and their share of the base, on both models' true shapes; needs torch, but no weights."""
    from rlvr_sweeps.compose import offline_composer
    from rlvr_sweeps.counts import MODELS, count_rows

    table = Table(title="Table 4: trained parameters", title_justify="left", box=None, header_style="dim", pad_edge=False)
    table.add_column("method")
    for model in MODELS:
        table.add_column(model, justify="right")
        table.add_column("%", justify="right")
    table.add_column("printed %", justify="right")
    table.add_column("where the printed share differs", overflow="fold")
    with console.status("counting"):
        rows = count_rows(offline_composer())
    for row in rows:
        cells = [cell for size, share in zip(row.trained, row.shares, strict=True) for cell in (f"{size:,}", f"{share:.4g}")]
        printed = "-" if row.printed_percent is None else f"{row.printed_percent:g}"
        table.add_row(row.title, *cells, printed + (" ✗" if row.note else ""), row.note)
    console.print(table)
