"""Exports as the providers write them, for a month of calls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

DAY_S = 86_400
Figures = dict[tuple[int, str], Any]


@dataclass
class OpenAIMonth:
    """What the provider counted, by day and model: [calls, input with cached tokens, cached, output, nano-USD]."""

    counted: dict[tuple[int, str], list[int]] = field(default_factory=dict)

    def add(self, day: int, model: str, calls: int, input_tokens: int, cached: int, output: int, nano: int) -> None:
        figures = self.counted.setdefault((day, model), [0, 0, 0, 0, 0])
        for place, number in enumerate((calls, input_tokens, cached, output, nano)):
            figures[place] += number

    def usage(self, days: range) -> bytes:
        return self._page(days, self._usage)

    def costs(self, days: range) -> bytes:
        return self._page(days, self._cost)

    def _usage(self, model: str, figures: list[int]) -> Mapping[str, Any]:
        calls, total, cached, output, _ = figures
        return {
            "object": "organization.usage.completions.result",
            "input_tokens": total,
            "input_cached_tokens": cached,
            "output_tokens": output,
            "num_model_requests": calls,
            "project_id": None,
            "model": model,
            "batch": None,
        }

    def _cost(self, model: str, figures: list[int]) -> Mapping[str, Any]:
        usd = Decimal(figures[4]).scaleb(-9)
        return {"object": "organization.costs.result", "amount": {"value": f"#{usd:f}#", "currency": "usd"}, "line_item": f"{model}, input", "project_id": None}

    def _page(self, days: range, made: Any) -> bytes:
        buckets = [
            {
                "object": "bucket",
                "start_time": day * DAY_S,
                "end_time": (day + 1) * DAY_S,
                "results": [made(model, figures) for (other, model), figures in sorted(self.counted.items()) if other == day],
            }
            for day in days
        ]
        text = json.dumps({"object": "page", "data": buckets, "has_more": False, "next_page": None})
        return text.replace('"#', "").replace('#"', "").encode()


ANTHROPIC_USAGE = (
    "usage_date_utc,model_version,api_key,workspace,usage_type,context_window,usage_input_tokens_no_cache,usage_input_tokens_cache_write_5m,"
    "usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,usage_output_tokens,web_search_count,inference_geo,speed\n"
)
ANTHROPIC_COSTS = "usage_date_utc,model,workspace,api_key,usage_type,context_window,token_type,cost_usd,list_price_usd,cost_type,inference_geo,speed\n"
OPENAI_COSTS = (
    "start_time,end_time,start_time_iso,end_time_iso,amount_value,amount_currency,quantity,quantity_unit,line_item,user_id,api_key_id,project_id,"
    "organization_id,project_name,organization_name,user_email,api_source\n"
)
