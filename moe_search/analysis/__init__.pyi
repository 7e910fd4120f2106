from .landscape import (
    FitnessDistance as FitnessDistance,
    LocalOptima as LocalOptima,
    autocorrelation as autocorrelation,
    correlation_length as correlation_length,
    distance as distance,
    enumerate_local_optima as enumerate_local_optima,
    fitness_distance as fitness_distance,
    random_walk as random_walk,
    sample_local_optima as sample_local_optima,
)
from .run_times import (
    run_time_distribution as run_time_distribution,
    solution_quality_distribution as solution_quality_distribution,
)
