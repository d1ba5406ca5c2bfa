"""At night half of the backends get new clients: scheduler = "/etc/loaded-mp/night.py" """

import time

NIGHT = (22, 23, 0, 1, 2, 3, 4, 5)  # hours, as the clock on the wall says


def slots(backends):
    awake = [each for each in backends if each.weight]
    if time.localtime().tm_hour in NIGHT:
        awake = awake[: (len(awake) + 1) // 2]
    return {each: each.weight for each in awake}
