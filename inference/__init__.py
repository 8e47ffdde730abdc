"""Engine, gateway and host side of Serinus. Law of the house: nothing in here imports Django."""
