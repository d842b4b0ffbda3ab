"""A process of the demo: a Shunter command that ends when the demo ends, however that happens."""

from shunter.demo.lifeline import end_with_the_demo
from shunter.entry import main

if __name__ == "__main__":
    end_with_the_demo()
    main()
