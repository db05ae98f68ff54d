"""Reads HTTPRoutes when a rollout asks for them: they are not watched.

Gateway API is installed by whoever runs the cluster, or not at all, and a namespaced operator may
not read definitions. So that it is not there, or may not be used, is told by what the API server
answers.
"""

from llmservice.adapters.ports import Cluster, ClusterError, Forbidden, NotFound
from llmservice.adapters.resources import HTTP_ROUTE
from llmservice.core.questions import ReadRoute, RouteReading
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


def _problem(error: ClusterError) -> str:
    if isinstance(error, Forbidden):
        return f"HTTPRoutes cannot be read: {error}"
    # Of an object that is missing the API server speaks by name; of a kind it knows nothing.
    if HTTP_ROUTE.plural in str(error):
        return ""
    needed = f"install Gateway API {NEEDED_VERSION} or newer"
    return f"the cluster has no HTTPRoute of {HTTP_ROUTE.api_version}: {needed}"
