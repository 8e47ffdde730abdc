"""The `serinus` command."""

from __future__ import annotations

import typer

from serinus.commands import adapters, golden, keys, machines, models, rollouts, traffic, triton, tune

app = typer.Typer(
    name="serinus",
    help="Upload a trained model; Serinus checks it, versions it, serves it and moves traffic to it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (machines, models, traffic, triton, tune):
    group.register(app)
app.add_typer(keys.app, name="keys")
app.add_typer(adapters.app, name="adapter")
app.add_typer(golden.app, name="golden")
app.add_typer(rollouts.app, name="rollout")


def main() -> None:
    app()


if __name__ == "__main__":
    main()
