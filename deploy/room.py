"""Who has more room gets more new clients: scheduler = "/etc/loaded-mp/room.py" """

FLOWS = 1_000  # that a backend has room for, for each 1 of its weight


def slots(backends):
    room = {each: FLOWS * each.weight - each.flows for each in backends if each.weight}
    return {each: max(1, flows) for each, flows in room.items()}
