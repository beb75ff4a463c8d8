"""How commands read words and config files."""

from fpe_lightning.extras import extra

with extra("template", "The command line"):
    from fpe_lightning.command_line.base import with_base as with_base
    from fpe_lightning.command_line.endings import end as end
    from fpe_lightning.command_line.mistakes import unknown_key as unknown_key
    from fpe_lightning.command_line.parser import Parser as Parser
