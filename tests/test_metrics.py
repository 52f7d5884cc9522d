import numpy as np

from lab.metrics import distance_to_curve, energy_distance, mean_distance, real_against_real
from npdiff.exact import SwissRoll


def test_mean_distance_equals_the_double_loop():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((17, 2)), rng.standard_normal((23, 2))
    between = np.mean([np.hypot(*(a - b)) for a in x for b in y])
    within = np.mean([np.hypot(*(x[i] - x[j])) for i in range(17) for j in range(17) if i != j])
    assert np.isclose(mean_distance(x, y), between, rtol=1e-12)
    assert np.isclose(mean_distance(x, x, same=True), within, rtol=1e-12)


def test_energy_distance_of_two_points_against_two_is_known_by_hand():
    x, y = np.array([[0.0, 0.0], [2.0, 0.0]]), np.array([[0.0, 1.0], [2.0, 1.0]])
    expected = (2 + 2 * np.sqrt(5)) / 2 - 2 - 2  # 2 E|X-Y| - E|X-X'| - E|Y-Y'|
    assert np.isclose(energy_distance(x, y), expected, rtol=1e-12)


def test_energy_distance_is_zero_on_average_for_one_law_and_positive_for_two():
    rng = np.random.default_rng(1)

    def draw():
        return rng.standard_normal((100, 2))

    same = [energy_distance(draw(), draw()) for _ in range(200)]
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(200)  # a false alarm in 16,000
    assert energy_distance(draw(), 1 + draw()) > np.mean(same) + 8 * np.std(same)


def test_real_against_real_takes_every_pair_of_sets():
    rng = np.random.default_rng(2)
    sets = [rng.standard_normal((30, 2)) for _ in range(4)]
    values = [energy_distance(sets[i], sets[j]) for i in range(4) for j in range(i)]
    expected = [np.mean(values), np.std(values, ddof=1)]
    assert np.allclose(real_against_real(sets), expected, rtol=1e-9)


def test_distance_to_curve_is_zero_on_it_and_the_offset_beside_it():
    roll = SwissRoll()
    u = np.linspace(6, 12, 50)
    tangent = np.stack([np.cos(u) - u * np.sin(u), np.sin(u) + u * np.cos(u)], axis=1)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1) / np.hypot(*tangent.T)[:, None]
    # Of the nodes along the curve.
    spacing = (roll.U_MAX**2 - roll.U_MIN**2) / 2 / 4000 / roll.scale
    assert distance_to_curve(roll.curve(u), roll).max() < spacing
    beside = roll.curve(u) + 0.1 * normal
    assert np.allclose(distance_to_curve(beside, roll), 0.1, atol=spacing**2 / 0.1)
