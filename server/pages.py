"""The page /docs, from fastapi-swagger's copy of Swagger UI: all its URLs are relative, so that any prefix will do."""

from fastapi import FastAPI
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.staticfiles import StaticFiles

# What the page changes in Swagger UI: behind a proxy's prefix, requests keep it; a body of another form starts anew
# instead of with remains of the last one; optional fields that are empty are not sent; and of a field that is both in
# the query string, for raw images, and in the body, the body's is sent.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="swagger/swagger-ui.css">
<link rel="icon" href="swagger/favicon-32x32.png">
<title>ViLT server</title>
</head>
<body>
<div id="swagger-ui"></div>
<script src="swagger/swagger-ui-bundle.js"></script>
<script>
const here = new URL(".", location.href).href;
const changes = {
  statePlugins: {
    spec: {wrapActions: {updateJsonSpec: update => spec => update({...spec, servers: [{url: here}]})}},
    oas3: {wrapActions: {setRequestContentType: (set, system) => chosen => {
      const before = system.oas3Selectors.requestContentType(...chosen.pathMethod) ?? chosen.value;
      const done = set(chosen);
      if (formOf(before) !== formOf(chosen.value))
        system.oas3Actions.setRequestBodyValue({value: undefined, pathMethod: chosen.pathMethod});
      return done;
    }}},
  },
  wrapComponents: {
    ParameterIncludeEmpty: (Original, {React}) => props => React.createElement(
      Original, {...props, isIncludedOptions: {...props.isIncludedOptions, defaultValue: false}}),
  },
};
function formOf(contentType) { return contentType.replace(/^image.*/, "image"); }  // a chosen file stays chosen
function fieldsOf(body) {
  if (body instanceof FormData) return [...body.keys()];
  try { return Object.keys(JSON.parse(body)); } catch { return []; }
}
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  plugins: [changes],
  requestInterceptor: request => {
    if (!request.body) return request;
    const url = new URL(request.url);
    fieldsOf(request.body).forEach(name => url.searchParams.delete(name));
    request.url = url.href;
    return request;
  },
});
</script>
</body>
</html>
"""


def add_pages(app: FastAPI) -> None:
    """Serve the page, and lead there from the root."""

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("docs")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(PAGE)

    app.mount("/swagger", StaticFiles(packages=[("fastapi_swagger", "resources")]))
