"""Reads HTTPRoutes and ScaledObjects when a decision asks for them: they are not watched.

Gateway API and KEDA are installed by whoever runs the cluster, or not at all, and a namespaced
operator may not read definitions. So that one is not there, or may not be used, is told by what
the API server answers.
"""

from llmservice.adapters.ports import Cluster, ClusterError, Forbidden, NotFound
from llmservice.adapters.resources import HTTP_ROUTE, SCALED_OBJECT
from llmservice.core.questions import (
    ReadRoute,
    ReadScaledObject,
    RouteReading,
    ScaledObjectReading,
)
from llmservice.core.router.gateway import NEEDED_VERSION


async def read_route(cluster: Cluster, question: ReadRoute) -> RouteReading | None:
    """The live route, or why there is none; None if the API server does not say."""
    try:
        live = await cluster.get(HTTP_ROUTE, question.namespace, question.name)
    except (NotFound, Forbidden) as error:
        return RouteReading(None, _problem(error))
    except ClusterError:
        return None
    return RouteReading(live)


async def read_scaled_object(
    cluster: Cluster, question: ReadScaledObject
) -> ScaledObjectReading | None:
    """The live ScaledObject, None inside if there is none; None if the API server does not say."""
    try:
        live = await cluster.get(SCALED_OBJECT, question.namespace, question.name)
    except NotFound:
        return ScaledObjectReading(None)
    except ClusterError:
        return None
    return ScaledObjectReading(live)


def _problem(error: ClusterError) -> str:
    if isinstance(error, Forbidden):
        return f"HTTPRoutes cannot be read: {error}"
    # Of an object that is missing the API server speaks by name; of a kind it knows nothing.
    if HTTP_ROUTE.plural in str(error):
        return ""
    needed = f"install Gateway API {NEEDED_VERSION} or newer"
    return f"the cluster has no HTTPRoute of {HTTP_ROUTE.api_version}: {needed}"
