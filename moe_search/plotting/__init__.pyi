from .canvases import canvases as canvases
from .expert_maps import (
    MapPanel as MapPanel,
    NamedMap as NamedMap,
    expert_maps as expert_maps,
)
from .loss_curves import (
    LossCurve as LossCurve,
    LossPanel as LossPanel,
    loss_curves as loss_curves,
)
from .placements import (
    device_loads as device_loads,
    layer_balance as layer_balance,
    layer_migrations as layer_migrations,
    over_rebalances as over_rebalances,
    trade_off as trade_off,
)
from .report import (
    Report as Report,
    ReportFigure as ReportFigure,
    Section as Section,
    render_report as render_report,
    write_report as write_report,
)
from .routing import co_activation as co_activation, expert_loads as expert_loads
from .search_statistics import (
    distribution_curves as distribution_curves,
    fitness_distances as fitness_distances,
    walk_autocorrelations as walk_autocorrelations,
)
from .table import Table as Table
