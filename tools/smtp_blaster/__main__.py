"""python -m smtp_blaster"""

from smtp_blaster.cli import main

main()
