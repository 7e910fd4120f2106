"""What articles report on instances of QAPLIB, to stand beside runs of ours.

Figures of an article stand here only where a text that anyone can read confirms them, of mean value and of time: the
article itself or an independent transcription of its table. For those of Taillard (1991, 1995) and of Benlic and Hao
(2013) none was found, so that they are left out, as are the instances sko100a to sko100f of BMA, which the
transcription mixes up.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """What an article reports on an instance.

    Attributes
    ----------
    value : float
        The mean value of its runs. Of an article that gives how far this is above the best known value, it stands as
        the product of that value, of its time, and of 1 plus the deviation.
    seconds : float
        Mean time of a run.
    """

    value: float
    seconds: float


class Article(NamedTuple):
    """An article.

    Attributes
    ----------
    algorithm, source, setting : str
        A short name of its algorithm, where it appeared, and on what its runs were made.
    figures : dict of str to Published
        By instance.
    """

    algorithm: str
    source: str
    setting: str
    figures: dict[str, Published]


ARTICLES = (
    Article(
        "BMA",
        "U. Benlic, J.-K. Hao, Memetic search for the quadratic assignment problem, Expert Systems with Applications "
        "42 (2015), 584-595, doi 10.1016/j.eswa.2014.08.011; mean values and times as transcribed in "
        "github.com/EtorArza/RTDHW, case_study/comparison_with_memetic_search",
        "C++, ten runs an instance, Intel Xeon E5440, 2.83 GHz",
        {
            "tai40a": Published(3139370 * 1.00059, 8.1 * 60),
            "tai50a": Published(4938796 * 1.00131, 42.0 * 60),
            "tai60a": Published(7205962 * 1.00144, 67.5 * 60),
            "tai80a": Published(13499184 * 1.00426, 65.8 * 60),
            "tai100a": Published(21052466 * 1.00405, 44.1 * 60),
            "tai50b": Published(458821517, 1.2 * 60),
            "tai60b": Published(608215054, 5.2 * 60),
            "tai80b": Published(818415043, 31.3 * 60),
            "tai100b": Published(1185996137, 13.6 * 60),
            "tai150b": Published(498896643 * 1.00060, 78.1 * 60),
        },
    ),
    # Its authors transcribe the table twice, with the same values. The times are those of the README, near the ones in
    # their github.com/EtorArza/SupplementaryKMMHamming; in the CSV file of case_study they count up from tai12a on.
    Article(
        "KMM",
        "E. Arza, A. Pérez, E. Irurozki, J. Ceberio, Kernels of Mallows models under the Hamming distance for solving "
        "the quadratic assignment problem, Swarm and Evolutionary Computation 59 (2020), 100740, doi "
        "10.1016/j.swevo.2020.100740; mean values and times as its authors give them in the README of "
        "github.com/EtorArza/RTDHW",
        "An estimation of distribution algorithm without local search, C++, 20 runs an instance, AMD Ryzen 7 1800X",
        {
            "bur26a": Published(5432374, 1.45),
            "bur26b": Published(3824798, 1.45),
            "bur26c": Published(5427185, 1.43),
            "bur26d": Published(3821474, 1.44),
            "nug17": Published(1735, 0.44),
            "nug18": Published(1936, 0.51),
            "nug20": Published(2573, 0.68),
            "nug21": Published(2444, 0.77),
            "tai10a": Published(135028, 0.12),
            "tai10b": Published(1183760, 0.12),
            "tai12a": Published(224730, 0.18),
            "tai12b": Published(39464925, 0.19),
            "tai15a": Published(388910, 0.31),
            "tai15b": Published(51768918, 0.31),
            "tai20a": Published(709409, 0.69),
            "tai20b": Published(122538448, 0.68),
            "tai40a": Published(3194672, 5.41),
            "tai40b": Published(644054927, 5.41),
            "tai60a": Published(7367162, 19.23),
            "tai60b": Published(611215466, 19.21),
            "tai80a": Published(13792379, 50.09),
            "tai80b": Published(836702973, 50.1),
        },
    ),
    Article(
        "DA3",
        "M. Ayodele, Penalty weights in QUBO formulations: permutation problems, EvoCOP 2022, doi "
        "10.1007/978-3-031-04148-8_11, arXiv 2206.11040, table 8",
        "Fujitsu's third digital annealer, 20 runs an instance; the time is the limit of a run, .03 n^2 s rounded up",
        {
            "had12": Published(1652, 5),
            "had14": Published(2724, 6),
            "had16": Published(3720, 8),
            "had18": Published(5358, 10),
            "had20": Published(6922, 12),
            "rou12": Published(235528, 5),
            "rou15": Published(354210, 7),
            "rou20": Published(725522, 12),
            "tai40a": Published(3139370 * 1.0007, 48),
            "tai40b": Published(637250948, 48),
        },
    ),
)
