"""The container image, the compose file and a Kafka in a container, tried on a real Docker daemon.

daemon    a Docker daemon of our own where none answers, and root and dockerd are there; leaves nothing behind
images    where it is ours there is no image registry to pull from: stand-ins of the vendors' images, made here
compose   the compose plugin: the installed one, else built from its source
host      what tests do with all of that

Every test here has the marker `docker` and is skipped, saying what to install, where no daemon can be had.
"""
