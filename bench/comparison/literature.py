"""What articles report on instances of QAPLIB, to stand beside runs of ours.

A figure stands here only where an independent transcription of the article's table confirms it. For those of Taillard
(1991, 1995) and of Benlic and Hao (2013) none was found, so that they are left out, as are the instances sko100a to
sko100f of the article below, which the transcription mixes up.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """What an article reports on an instance.

    Attributes
    ----------
    deviation : float
        How far the mean value of its runs is above the best known one, in percent.
    best_known : int
        The best known value of its time.
    minutes : float
        Mean time of a run.
    """

    deviation: float
    best_known: int
    minutes: float

    @property
    def value(self) -> int:
        """The mean value of the runs."""
        return round(self.best_known * (1 + self.deviation / 100))


class Article(NamedTuple):
    """An article.

    Attributes
    ----------
    algorithm, source, setting : str
        What it calls its algorithm, where it appeared, and on what its runs were made.
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
            "tai40a": Published(0.059, 3139370, 8.1),
            "tai50a": Published(0.131, 4938796, 42.0),
            "tai60a": Published(0.144, 7205962, 67.5),
            "tai80a": Published(0.426, 13499184, 65.8),
            "tai100a": Published(0.405, 21052466, 44.1),
            "tai50b": Published(0.0, 458821517, 1.2),
            "tai60b": Published(0.0, 608215054, 5.2),
            "tai80b": Published(0.0, 818415043, 31.3),
            "tai100b": Published(0.0, 1185996137, 13.6),
            "tai150b": Published(0.060, 498896643, 78.1),
        },
    ),
)
