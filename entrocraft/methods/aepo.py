"""AEPO: adds successes sampled at a higher or lower temperature, to steer the entropy."""

from dataclasses import dataclass

from entrocraft.method import ExtraRollouts, Measurement, Method, number

__all__ = ["AEPO"]


@dataclass(eq=False)
class AEPO(Method):
    """Arbitrary entropy policy optimization: hot successes raise entropy, cold ones lower it.

    A share of the batch's prompts is sampled once more, hot if H <= h and cold if not. Of these
    rollouts those with an advantage above 0.05, `rows` at most and half of them if H > h, take the
    places of the batch's first rollouts and are trained on with advantage 1.

    Source: AEPO (arXiv 2510.08141); repository 597358816/AEPO, where H is the last step's; here the
    batch's own. The extra rollouts come on top of the batch: by default a quarter more to generate.

    Args:
        hot: temperature while entropy is at or below the target.
        cold: temperature while it is above.
        share: part of the prompts that are sampled again.
        rows: rollouts to take over, at most.
        least_advantage: what their advantage has to exceed.
    """

    name = "aepo"
    follows = True
    own_target = 0.5
    coefficient = "rows"
    samples_more = True

    hot: float = number(1.2, above=0)
    cold: float = number(0.8, above=0)
    share: float = number(0.25, above=0, high=1)
    rows: float = number(60, low=1)
    least_advantage: float = number(0.05)

    def extra(self, seen: Measurement) -> ExtraRollouts:
        above = seen.error > 0
        return ExtraRollouts(
            share=self.share,
            temperature=self.cold if above else self.hot,
            rows=int(self.rows),
            taken=0.5 if above else 1.0,
            least_advantage=self.least_advantage,
        )
