"""`python -m serinus.repository`: the process that `serinus up --model-repository` starts."""

from serinus.repository.folder import main

main()
